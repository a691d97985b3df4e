"""Finds the final answer in a response, in layers from the most explicit sign to the weakest."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mlxmath.grading.amounts import (
    MATH,
    NUMBER,
    REASON,
    behind_empty_box,
    first_sentence,
    is_answer,
    last_box,
    pick,
    pick_last,
)
from mlxmath.grading.normal import MAX_CHARACTERS, clean
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.structure import shape

Rule = Literal["####", "boxed", "answer is", "whole", "therefore", "last number"]
"""Which layer found the answer, from the surest to the weakest."""

_LONGEST_BARE_GOLD = 250
"""A gold text above this many characters is a solution, not an answer by itself."""

THINKING = (
    ("<think>", "</think>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<longcat_think>", "</longcat_think>"),
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    ("<|think:start|>", "<|think:end|>"),
)
"""Between what families of models think."""
THOUGHT_END = re.compile("|".join(re.escape(end) for _, end in THINKING))
_STOP = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end|user)\|>|</s>|<eos>|<end_of_turn>")
_HASHES = re.compile(r"^[ \t>*]*####(?!#)[ \t]*(.*)$", re.MULTILINE)
_THEREFORE = re.compile(
    r"(?:^|(?<=[.!?:\n*] )|(?<=[\n*]))\W{0,3}(?:therefore|thus|hence|so|in conclusion|altogether|in total)\b",
    re.IGNORECASE,
)

_TAIL = 6000
"""So far back, in characters, a text is read for statements in words."""

_ANSWER_WORDS = (
    r"\b(?:final|correct)?[ \t]*(?:answers?)\b(?![ \t]*(?:choices|options)\b)[^.\n:=$\\]{0,80}?"
    r"(?:\b(?:is|are|be|was|equals)\b|[:=])[*_]*:?[*_]*"
)
_ANSWER_WORDS_ELSEWHERE = (
    r"(?:答案|答え|答|정답|답)(?:[是为為は은][:：]?|[:：])|\b(?:Antwort|Ответ|respuesta|réponse|resposta|risposta)\b[^.\n:=$\\]{0,60}?"
    r"(?:\b(?:ist|est|es|é|è)\b|[:=：])[*_]*"
)
_ANSWER = re.compile(
    rf"(?:^[ \t>*_#-]*(?:A|Ans(?:wer)?|Solution|Result)[ \t]*[*_]*[ \t]*[:=][*_]*"
    rf"|{_ANSWER_WORDS}|{_ANSWER_WORDS_ELSEWHERE})[ \t]*",
    re.MULTILINE | re.IGNORECASE,
)
_CHOICE = re.compile(
    r"\b(?:correct[ \t]*)?(?:option|choice)\b[^.\n:=$\\]{0,80}?"
    r"(?:\b(?:is|are|be|was)\b|[:=])[*_]*:?[*_]*[ \t]*",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"(?:(?P<named>\b(?i:option|choice|answer|alternative)\s{1,3})"
    r"|(?:^[ \t>*_#-]{0,6}|[.,;:!?]\s{1,3}|\b(?i:so|thus|hence|therefore|then|that|means)\s{1,3}))"
    r"(?P<wrapped>[*_$(]{0,4}(?P<letter>[A-H])[*_$)]{0,4})(?:\s?\([^()\n]{1,60}\))?"
    r"\s{1,3}(?:is|must be)\s{1,3}(?:(?:therefore|thus|then|indeed|clearly|also),?\s{1,3})?[*_]{0,2}"
    r"(?:correct|(?(named)right|(?!))"
    r"|(?:the|our|my)\s(?:(?:correct|right|best)\s(?:answer|choice|option|one)|(?:final |only )?answer))\b"
    r"(?!\s*\?|\s{1,3}(?:if|only|when|unless|about)\b)",
    re.MULTILINE,
)
"""A letter that is said to be right: option C is correct, B is the correct answer."""
_SUPPOSED = re.compile(
    r"\b(?:if|whether|suppose|supposing|assume|assuming|neither|nor|either|or|not|cannot|never)\b|n['’]t\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[^.,;:!?\n]{0,80}$")
_SOLUTIONS = re.compile(
    r"\b(?:solutions?|roots?|zeros?|points?|pairs?|coordinates|vertex|cent(?:er|re)|interval|vector|set|domain|ratio)\b"
    r"[^.\n:=$\\]{0,60}?(?:\b(?:is|are)\b|:)[ \t]*",
    re.IGNORECASE,
)
_LINE = re.compile(
    r"(?:[ \t]*\n?[ \t]*\n?[ \t]*(?:\$\$[^$]{1,1000}\$\$|\\\[(?:[^\\]|\\(?!\])){1,1000}\\\]))?"
    r"[^\n]*(?:\n[ \t]*\n?[ \t]*(?=\$|\\\[|\\\()[^\n]*)?"
)
"""The rest of a line, with a formula of several lines in it or one on the line after."""
_CORRECTED = re.compile(
    r"(?:^|(?<=[.!?\n]))[ \t]*(?:(?:but|and|oh|so)\b,? )?(?:wait|actually|no|sorry|oops|correction|hold on)\b"
    r"[^\d\n]{0,60}?"
    r"\b(?:it|that|this|answer|result|total)(?: is| was|['’]s| should be| must be| should have been)\s+"
    r"(?:actually |really |in fact )?"
    r"(?P<text>[$\\]?-?[\d$\\(.][^!?\n]{0,80})",
    re.MULTILINE | re.IGNORECASE,
)
_IS_THE_ANSWER = re.compile(
    r"(?P<text>[^\n,;:!?]{1,60}?)\s(?:is|must be|are)\s(?:therefore |thus |then )?"
    r"(?:the|our|my)\s(?:final |correct )?answer\b",
    re.IGNORECASE,
)
_DENIED_AMOUNT = rf"(?:\\?\$?[-+]?{NUMBER}(?:(?: \d+)?/\d+)?(?:\s?\\?%)?\$?|\$[^$\n]{{1,60}}\$)"
_DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bcannot|\bnever)\s[^.,;:\n]{1,40}?,?\sbut\s(?:rather |instead |actually )?"
    rf"|(?:(?:\bnot|n['’]t|\bcannot|\bnever)\s"
    r"(?:be\s|equal\s(?:to\s)?|really\s|actually\s|simply\s|just\s)?|\b(?:instead of|rather than)\s)"
    rf"{_DENIED_AMOUNT}(?![\w.]*\d)",
    re.IGNORECASE,
)
_VERDICT = re.compile(r"(?:also |indeed |therefore |thus |not |in)*(?:correct|right|wrong)\b", re.IGNORECASE)
"""What a text says of an option: option A is incorrect, as 5 > 3."""
_JUDGEMENT = re.compile(
    r"^(?:also |indeed |therefore |thus |not |in)*"
    r"(?:correct|right|wrong|valid|reasonable|clear|as follows|below|above|positive|negative)\b[^\d$\\]*$",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"^(?:not|found|based|given|obtained|calculated|computed|determined|derived|because|due|that|simply|just)\b",
    re.IGNORECASE,
)
_MOST_WORDS = 5
"""Of an answer in words, in a text that has numbers too."""
_FINAL_ANSWER = re.compile(r"\bfinal answer is[ \t]*:?[ \t]*([^\n]+)", re.IGNORECASE)
_HOPE = re.compile(r"\.?\s{0,5}I hope (?:it|this) (?:is correct|helps).*$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Extracted:
    """An answer as it stands in the text, and which rule found it."""

    text: str
    rule: Rule


def after_thinking(response: str) -> str | None:
    """What follows the last `</think>`, or what else a model ends its thinking with; None if it is left open."""
    *_, rest = THOUGHT_END.split(response)
    return None if any(begin in rest for begin, _ in THINKING) else rest


def extract(response: str) -> Extracted | None:
    r"""The final answer of a response without its thinking, None if there is none.

    Layers: after `####`; the last `\boxed{}`; a line such as `A: …`, "the answer is …"; a response that is nothing but
    an answer; the last "Therefore …" sentence; the last number or formula.
    """
    if stop := _STOP.search(response, 1):
        response = response[: stop.start()]
    response = response.rstrip()
    if found := _tagged(response) or _hashes(response):
        return found
    if (rest := behind_empty_box(response)) is not None:
        return extract(rest)
    if found := _boxed(response):
        return found
    tail = _DENIED.sub(" ", response[-_TAIL:])
    for layer, rule in _LAYERS:
        if text := layer(tail if rule != "whole" else response.strip()):
            return Extracted(text, rule)
    return None


def reference(gold: str) -> str:
    r"""The answer that a gold text states: after `####` or in its last `\boxed{}`; of a solution the final answer."""
    found = _hashes(gold) or _boxed(gold) or (extract(gold) if len(gold) > _LONGEST_BARE_GOLD else None)
    return found.text if found else gold.strip()


def _tagged(response: str) -> Extracted | None:
    """The answer inside the last `<answer>` tag."""
    _, tag, behind = response.rpartition("<answer>")
    inside = behind.partition("</answer>")[0].strip()
    if not tag or not inside:
        return None
    found = extract(inside)
    if found and found.rule in ("####", "boxed"):
        return found
    text = found.text if found else inside
    return Extracted(text, "answer is") if len(text) <= MAX_CHARACTERS else None


def _hashes(response: str) -> Extracted | None:
    """The last `####` line that states an answer; other such lines are markdown headings."""
    for match in reversed(list(_HASHES.finditer(response))[-50:] if "####" in response else []):
        text = match[1].strip().strip("*").strip()
        is_end = not response[match.end() :].strip()
        if text and len(text) <= MAX_CHARACTERS and (is_end or _states_answer(text)):
            box = last_box(text)
            return Extracted(box[0] if box else _HOPE.sub("", text), "####")
    return None


def _states_answer(text: str) -> bool:
    r"""A number with or without a unit, or one formula: not a heading such as "Step 2: add" or "2. Find the sum"."""
    plain = clean(text).rstrip(" .")
    is_short = MATH.fullmatch(plain) or re.fullmatch(r"\(?[A-Z]\)?", plain) or plain.startswith("\\boxed")
    return bool(is_short or parse_quantity(re.sub(r"\\?\$", "", plain).strip()))


def _boxed(response: str) -> Extracted | None:
    """The last box, unless "the final answer is" follows it."""
    box = last_box(response)
    if not box:
        return None
    finals = _FINAL_ANSWER.findall(response[box[1] :][-_TAIL:])
    final = pick(_HOPE.sub("", finals[-1])) if finals else None
    return Extracted(final, "answer is") if final else Extracted(box[0], "boxed")


def _stated(tail: str) -> str | None:
    """What the last "the answer is …" states, unless the text takes it back for another."""
    chosen = _chosen(tail)
    start = chosen.end() if chosen else 0
    for heads in (_ANSWER, _CHOICE):
        for head in reversed(list(heads.finditer(tail, start))[-20:]):
            if heads is _CHOICE and _VERDICT.match(tail, head.end()):
                continue
            text = pick(_HOPE.sub("", _line(tail, head.end())))
            if text and not _JUDGEMENT.match(text) and not _is_remark(text):
                corrections = list(_CORRECTED.finditer(tail[head.end() :]))
                return (pick(corrections[-1]["text"]) if corrections else None) or text
    for head in reversed(list(_SOLUTIONS.finditer(tail))[-5:] if not chosen else []):
        text = REASON.sub("", first_sentence(_line(tail, head.end())).strip(" ,{}"))
        if text and "$" not in text and (shape(text).kind != "scalar" or " to " in text) and is_answer(text):
            return text
    answers = list(_IS_THE_ANSWER.finditer(tail, start))[-3:] if "answer" in tail else []
    stated = next(filter(None, (pick_last(match["text"]) for match in reversed(answers))), None)
    return stated or (chosen["letter"] if chosen else None)


def _chosen(tail: str) -> re.Match[str] | None:
    """The last "option C is correct" that is said without a condition and of no variable."""
    for match in reversed(list(_CHOSEN.finditer(tail))[-20:]):
        begin = match.start("wrapped")
        clause = _CLAUSE.search(tail[max(0, begin - 80) : begin])
        is_variable = not match["named"] and re.search(rf"\b{match['letter']}\s?=", tail)
        if not is_variable and not (clause and _SUPPOSED.search(clause[0])):
            return match
    return None


def _is_remark(text: str) -> bool:
    """Whether it says something of the answer instead of the answer: "found by adding both"."""
    if re.search(r"[\d$\\]", text) or parse_quantity(clean(text)):
        return False
    return bool(_REMARK.match(text)) or len(re.findall(r"[^\W\d_]+", text)) > _MOST_WORDS


def _line(text: str, start: int) -> str:
    match = _LINE.match(text, start)
    return match[0] if match else ""


def _whole(text: str) -> str | None:
    """A response that is one short line without a sentence: an answer by itself."""
    is_line = "\n" not in text and len(text) <= 200 and re.search(r"\w", text.replace("\\boxed", ""))
    return text if is_line and is_answer(text) else None


def _concluded(tail: str) -> str | None:
    """What the last sentence with "therefore" comes to, in the last two lines."""
    end = "\n".join([line for line in tail.split("\n") if line.strip()][-2:])
    matches = list(_THEREFORE.finditer(end))
    return pick_last(first_sentence(end[matches[-1].end() :])) if matches else None


def _judged(tail: str) -> str | None:
    """Of a text without any number: "the answer is positive"."""
    heads = list(_ANSWER.finditer(tail))
    return pick(tail[heads[-1].end() :].partition("\n")[0]) if heads else None


_LAYERS: tuple[tuple[Callable[[str], str | None], Rule], ...] = (
    (_stated, "answer is"),
    (_whole, "whole"),
    (_concluded, "therefore"),
    (pick_last, "last number"),
    (_judged, "answer is"),
)
"""In this order behind `####` and boxes; they get the text's end without numbers that it says are not the answer."""
