"""Clock times and dates as answers."""

import re

_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
           "december")  # fmt: skip
_MONTH = "|".join(rf"{name[:3]}(?:{name[3:]})?" if name != "may" else name for name in _MONTHS)
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?(?:the\s+)?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?!\d)"
_YEAR = r"(?:,?\s+(?P<year>\d{4}))?"

_HALF = r"\s?(?:[aApP][mM]\b|[aApP]\.\s?[mM]\b\.?)"
CLOCK = rf"\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?![\d:])(?:{_HALF})?|\d{{1,2}}{_HALF}"
"""A time inside a text, as a regular expression."""
_CAPITALIZED = "|".join(name.capitalize() for name in _MONTHS)
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)?(?!\d)"
DATE = rf"(?:[A-Z][a-z]+day,? )?(?:(?:{_CAPITALIZED}) {_ORDINAL}|{_ORDINAL} (?:of )?(?:{_CAPITALIZED}))(?:,? \d{{4}})?"
"""A date inside a text, as a regular expression."""

_TIME = re.compile(r"^(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?)?$", re.IGNORECASE)
_NAMED_TIMES = {"noon": "12:00 pm", "midday": "12:00 pm", "midnight": "12:00 am",
                "12 noon": "12:00 pm", "12 midnight": "12:00 am"}  # fmt: skip
_ISO_DATE = re.compile(r"^(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})$")
_HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_PART_OF_HOUR = re.compile(rf"^(?:a )?(half|quarter) (past|after|to|before) (\d{{1,2}}|{'|'.join(_HOURS)})\b")
_DATES = (
    re.compile(rf"^{_WEEKDAY}(?P<month>{_MONTH})\.?\s+(?:the\s+)?{_DAY}{_YEAR}$", re.IGNORECASE),
    re.compile(rf"^{_WEEKDAY}{_DAY}\s+(?:of\s+)?(?P<month>{_MONTH})\.?{_YEAR}$", re.IGNORECASE),
)


_DAYTIMES = {"in the morning": "am", "in the afternoon": "pm", "in the evening": "pm", "at night": "pm"}
_DAYTIME = re.compile(rf"\s+({'|'.join(_DAYTIMES)})$", re.IGNORECASE)


def is_moment(text: str) -> bool:
    """Whether a text is a clock time or a date and nothing else."""
    match = _TIME.match(_plain(text))
    return bool(match and (match[2] or match[4])) or _date(text) is not None


def _plain(text: str) -> str:
    """`noon`, `7 o'clock`, `7:30 in the morning` with figures and am or pm."""
    text = re.sub(r"^(\d{1,2}) ?o'clock\b", r"\1:00", text.lower())
    text = _PART_OF_HOUR.sub(_part_of_hour, text)
    return _DAYTIME.sub(lambda match: " " + _DAYTIMES[match[1]], _NAMED_TIMES.get(text, text))


def _part_of_hour(match: re.Match[str]) -> str:
    """`half past 4` as 4:30, `quarter to five` as 4:45."""
    minutes = 30 if match[1] == "half" else 15
    hour = int(match[3]) if match[3].isdigit() else _HOURS.index(match[3]) + 1
    if match[2] in ("to", "before"):
        hour, minutes = (hour - 2) % 12 + 1, 60 - minutes
    return f"{hour}:{minutes}"


def same_time(answer: str, gold: str) -> bool | None:
    """Clock times: `4:30 p.m.` is `4:30 PM`, `16:30` and `4:30`; None if one is no time."""
    a, g = (_TIME.match(_plain(text)) for text in (answer, gold))
    if not a or not g or not (a[2] or a[4]) or not (g[2] or g[4]):
        return None
    hours = []
    for match in (a, g):
        hour = int(match[1])
        if match[4]:
            hour = hour % 12 + (12 if match[4].lower() == "p" else 0)
        hours.append(hour)
    if (int(a[2] or 0), int(a[3] or 0)) != (int(g[2] or 0), int(g[3] or 0)):
        return False
    if bool(a[4]) != bool(g[4]):
        return int(a[1]) == int(g[1]) or hours[0] == hours[1]
    return hours[0] == hours[1]


def same_date(answer: str, gold: str) -> bool | None:
    """`May 5` is `5th of May` and, where a side leaves out the year, `May 5, 2020`; None if one is no date."""
    a, g = _date(answer), _date(gold)
    if a is None or g is None:
        return None
    return a[:2] == g[:2] and (a[2] is None or g[2] is None or a[2] == g[2])


def _date(text: str) -> tuple[int, int, int | None] | None:
    """Month, day, year."""
    if iso := _ISO_DATE.match(text):
        return int(iso["month"]), int(iso["day"]), int(iso["year"])
    match = next((found for pattern in _DATES if (found := pattern.match(text))), None)
    if not match:
        return None
    month = next(i for i, name in enumerate(_MONTHS, 1) if name.startswith(match["month"].lower()[:3]))
    return month, int(match["day"]), int(match["year"]) if match["year"] else None
