"""Other names of the people in a problem: each by one of the same kind (women, men, either), wherever it stands."""

import json
import random
import re
from pathlib import Path

_LISTS = json.loads(Path(__file__).with_name("first_names.json").read_text())
_KINDS: list[list[str]] = [_LISTS[kind] for kind in ("she", "he", "either")]
_ALSO_WORDS = frozenset(_LISTS["also words"])
"""These are taken for names only where one stands within a sentence."""
_NAME = re.compile(r"(?<![\w-])[A-Z][a-z]+(?![\w-])")
_ABOUT_NAMES = re.compile(
    r"\b(?:letters?|names?|named|alphabet\w*|initials?|spell\w*|rhymes?|vowels?)\b", re.IGNORECASE
)
_BEGINS = re.compile(r"(?:^|[.?!:;]\s*|\n\s*|\"\s*)$")


def people(text: str) -> dict[str, list[str]]:
    """The first names in a text that may be replaced, each with the names of its kind.

    A name beside another capitalised word (a surname, a street, a team) stays; none may be replaced where the text
    speaks of names or letters.
    """
    if _ABOUT_NAMES.search(text):
        return {}
    found: dict[str, list[str]] = {}
    stay: set[str] = set()
    within: set[str] = set()
    for match in _NAME.finditer(text):
        kind = next((names for names in _KINDS if match[0] in names), None)
        if kind is None:
            continue
        before, behind = text[: match.start()], text[match.end() :]
        if not _BEGINS.search(before):
            within.add(match[0])
        other = re.search(r"([A-Z][\w'.]*)\s$", before)
        if re.match(r"\s[A-Z]\w", behind) or (other and not _BEGINS.search(before[: other.start()])):
            stay.add(match[0])
        found[match[0]] = kind
    stay |= (_ALSO_WORDS & found.keys()) - within
    return {name: kind for name, kind in found.items() if name not in stay}


def draw_names(text: str, rng: random.Random) -> dict[str, str] | None:
    """Another name for each that may be replaced; None if there is none."""
    found = people(text)
    there = set(_NAME.findall(text))
    chosen: dict[str, str] = {}
    for name, kind in found.items():
        begin = {word[:3] for word in (*there, *chosen.values())}
        others = [other for other in kind if other[:3] not in begin]
        chosen[name] = rng.choice(others)
    return chosen or None


def with_names(text: str, names: dict[str, str]) -> str:
    """The text with other names."""
    return _NAME.sub(lambda match: names.get(match[0], match[0]), text)
