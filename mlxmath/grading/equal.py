"""Whether two answers are the same: by text, else as exact numbers."""

from fractions import Fraction


def as_number(text: str) -> Fraction | None:
    """A decimal, a fraction or an integer with thousands separators as an exact number; None if it is none."""
    plain = text.strip().strip("$").replace(",", "").replace(" ", "").rstrip(".")
    if len(plain) > 100:
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def equal(answer: str, gold: str) -> bool:
    """Same text, or same number."""
    if answer.strip() == gold.strip():
        return True
    value = as_number(answer)
    return value is not None and value == as_number(gold)
