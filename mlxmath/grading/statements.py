"""What a response states as its answer in words: "the answer is …", "A: …", "… is the answer"."""

import re

from mlxmath.grading.amounts import NUMBER, first_sentence, is_answer, pick, pick_last, without_reason
from mlxmath.grading.structure import shape

TAIL = 6000
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
_DENIED_AMOUNT = rf"(?:\\?\$?[-+]?{NUMBER}(?:\s?\\?%)?\$?|\$[^$\n]{{1,60}}\$)"
_DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bcannot|\bnever)\s[^.,;:\n]{1,40}?,?\sbut\s(?:rather |instead |actually )?"
    rf"|(?:(?:\bnot|n['’]t|\bcannot|\bnever)\s"
    r"(?:be\s|equal\s(?:to\s)?|really\s|actually\s|simply\s|just\s)?|\b(?:instead of|rather than)\s)"
    rf"{_DENIED_AMOUNT}(?![\w.]*\d)",
    re.IGNORECASE,
)
_JUDGEMENT = re.compile(
    r"^(?:also |indeed |therefore |thus |not |in)*"
    r"(?:correct|right|wrong|valid|reasonable|clear|as follows|below|above|positive|negative)\b[^\d$\\]*$",
    re.IGNORECASE,
)
_FINAL_ANSWER = re.compile(r"\bfinal answer is[ \t]*:?[ \t]*([^\n]+)", re.IGNORECASE)
_HOPE = re.compile(r"\.?\s{0,5}I hope (?:it|this) (?:is correct|helps).*$", re.IGNORECASE | re.DOTALL)


def stated_answer(response: str) -> str | None:
    """What the last "the answer is …" states, unless the text takes it back for another."""
    tail = without_denied(response)
    for heads in (_ANSWER, _CHOICE):
        for head in reversed(list(heads.finditer(tail))[-20:]):
            line = _LINE.match(tail, head.end())
            text = pick(without_hope(line[0])) if line else None
            if text and not _JUDGEMENT.match(text):
                return _correction(tail[head.end() :]) or text
    for head in reversed(list(_SOLUTIONS.finditer(tail))[-5:]):
        line = _LINE.match(tail, head.end())
        text = without_reason(first_sentence(line[0]).strip(" ,{}")) if line else ""
        if text and "$" not in text and (shape(text).kind != "scalar" or " to " in text) and is_answer(text):
            return text
    for match in reversed(list(_IS_THE_ANSWER.finditer(tail))[-3:] if "answer" in tail else []):
        if text := pick_last(match["text"]):
            return text
    return None


def final_answer_line(text: str) -> str | None:
    """What "the final answer is" states behind the last box."""
    matches = list(_FINAL_ANSWER.finditer(text[-TAIL:]))
    return pick(without_hope(matches[-1][1])) if matches else None


def judgement(response: str) -> str | None:
    """Of a text without any number: "the answer is positive"."""
    tail = without_denied(response)
    heads = list(_ANSWER.finditer(tail))
    return pick(tail[heads[-1].end() :].partition("\n")[0]) if heads else None


def without_denied(response: str) -> str:
    """The text's end without numbers that it says are not the answer: "not 5", "6 instead of 5", "not 5 but 6"."""
    return _DENIED.sub(" ", response[-TAIL:])


def without_hope(text: str) -> str:
    """Without the "I hope it is correct" that Minerva's prompt teaches."""
    return _HOPE.sub("", text)


def _correction(text: str) -> str | None:
    """What "wait, it should be 6" puts in the place of what was stated before."""
    corrections = list(_CORRECTED.finditer(text))
    return pick(corrections[-1]["text"]) if corrections else None
