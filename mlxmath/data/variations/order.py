"""The same problem with its parts in another order, where their order says nothing.

Two kinds of parts are safe: the items of a list at the end of a sentence ("3 apples, 4 pears and 5 plums."), and
neighbouring sentences that each state something of one named thing without a pronoun or a word of time. The answer
stays (compare Chen et al. 2024, arXiv:2402.08939, on the order of premises).
"""

import random
import re

_COUNT = (
    r"(?:\$?\d+(?:,\d{3})*(?:\.\d+)?%?(?![\w/])|an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
)
_ITEM = rf"{_COUNT}(?: (?!and\b|or\b)(?:[a-z][a-z'-]*|\$?\d+(?:,\d{3})*(?:\.\d+)?%?(?![\w/]))){{1,6}}"
_LIST = re.compile(
    rf"(?<=[a-z:] )(?P<items>{_ITEM}(?:, {_ITEM})*)(?P<comma>,?) and (?P<last>{_ITEM})(?=[.?!,;](?:\s|$))"
)
_FUNCTION = re.compile(
    r"(?:an?|the|at|in|on|from|for|with|to|of|by|per|each|every|that|which|who|is|are|was|were|has|have|had|costs?|worth"
    r"|than|more|less|fewer|times|as|many|much|another|other|his|her|its|their|he|she|it|they|when|if|while|but|so"
    r"|because|out|off|left|back)$"
)
_AMOUNT = re.compile(_COUNT)
_ORDERED = re.compile(
    r"\b(?:respectively|former|latter|in that order|first|second|third|last|next|then|following|afterwards?|the other"
    r"|others|rest|remaining|another)\b",
    re.IGNORECASE,
)
_STATES = re.compile(
    r"(?:[A-Z][a-z]+(?:'s [a-z]+)?|(?:An?|Each|One|The) [a-z]+(?: [a-z]+)?) (?:has|have|had|is|are|was|were"
    r"|weighs?|weighed|costs?|owns?|earns?|earned|charges?|contains?|holds?|picked|baked|caught|scored|collects?|collected"
    r"|sells?|sold|runs?|ran|walked|reads?|makes?|made|eats?|drinks?|needs?|takes?|uses?|can) "
)
_REFERS = re.compile(
    r"\b(?:he|she|it|they|his|her|hers|him|them|their|its|this|that|these|those|there|both|also|too|again|now|later|already|still"
    r"|so|but|however|if|when|after|before|total|together|same|such|one|ones|does|did|do)\b",
    re.IGNORECASE,
)
_COMPARES = re.compile(
    r"\b(?:more|fewer|less|older|younger|taller|shorter|longer|faster|slower|heavier|lighter|bigger|larger|smaller|better|worse"
    r"|times|twice|thrice|half|double|triple)\b"
)
_WITH_WHAT = re.compile(r"\bthan [\w$]|\bas \w+(?: \w+)* as [\w$]|\bwhat [A-Za-z]|\w's\b")
"""What a comparison is with; without it, it is with something of the sentence before."""
_SENTENCE = re.compile(r"[^.?!\n]+(?:\.\d[^.?!\n]*)*[.?!]")


def reordered(text: str, rng: random.Random) -> str | None:
    """The text in another order; None where nothing in it may change places."""
    if _ORDERED.search(text):
        return None
    changed = _LIST.sub(lambda match: _shuffled_list(match, rng), text)
    changed = _shuffled_sentences(changed, rng)
    return changed if changed != text else None


def _shuffled_list(match: re.Match[str], rng: random.Random) -> str:
    items = [*match["items"].split(", "), match["last"]]
    if len({_shape(item) for item in items}) > 1:
        return match[0]
    order = _other_order(items, rng)
    return f"{', '.join(order[:-1])}{match['comma']} and {order[-1]}"


def _shape(item: str) -> str:
    """Numbers, function words and where other words stand: what items of a list share that say the same of each."""
    words = ["#" if _AMOUNT.fullmatch(w) else w if _FUNCTION.match(w) else "w" for w in item.split()]
    return re.sub(r"w(?: w)+", "w", " ".join(words))


def _shuffled_sentences(text: str, rng: random.Random) -> str:
    """Runs of statements, each in another order."""
    runs: list[list[tuple[int, int]]] = [[]]
    for match in _SENTENCE.finditer(text):
        start = match.end() - len(match[0].lstrip())
        begun = text[: runs[-1][0][0] if runs[-1] else start]
        if _is_statement(text[start : match.end()], begun):
            runs[-1].append((start, match.end()))
        else:
            runs.append([])
    for run in reversed(runs):
        if len(run) > 1:
            old = [text[start:end] for start, end in run]
            for (start, end), new in reversed(list(zip(run, _other_order(old, rng), strict=True))):
                text = text[:start] + new + text[end:]
    return text


def _is_statement(sentence: str, before: str) -> bool:
    """Whether a sentence says something of one thing alone; what it calls "the" must be known `before` the run."""
    match = _STATES.match(sentence)
    if not match or _REFERS.search(sentence) or not sentence.endswith(".") or not re.search(r"\d", sentence):
        return False
    if _COMPARES.search(sentence) and not _WITH_WHAT.search(sentence):
        return False
    known = re.findall(r"\b[Tt]he ([a-z]{4})", sentence)
    return all(word in before.lower() for word in known)


def _other_order(items: list[str], rng: random.Random) -> list[str]:
    """Shuffled, but not as it was, where two items differ."""
    if len(set(items)) < 2:
        return items
    while (found := rng.sample(items, len(items))) == items:
        pass
    return found
