"""Units of measurement: their names, what they measure, and how many of one make another."""

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache

# Each canonical unit and its other names.
_NAMES = {
    "nm": "nanometer nanometers nanometre nanometres", "µm": "micrometer micrometers micrometre micrometres microns",
    "mm": "millimeter millimeters millimetre millimetres", "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres", "km": "kilometer kilometers kilometre kilometres kms",
    "in": "inch inches", "ft": "foot feet", "yd": "yard yards yds", "mi": "mile miles",
    "mg": "milligram milligrams", "g": "gram grams", "kg": "kilogram kilograms kgs", "lb": "pound pounds lbs",
    "oz": "ounce ounces", "ton": "tons tonne tonnes",
    "ml": "mL milliliter milliliters millilitre millilitres", "L": "l liter liters litre litres",
    "gal": "gallon gallons", "pt": "pint pints", "qt": "quart quarts",
    "ms": "millisecond milliseconds", "s": "sec secs second seconds", "min": "mins minute minutes",
    "h": "hr hrs hour hours", "day": "days", "week": "weeks", "month": "months", "year": "years yr yrs",
    "°": "degree degrees deg", "rad": "radian radians", "dollar": "dollars usd bucks $", "cent": "cents ¢",
    "euro": "euros eur €", "£": "gbp", "¥": "yen", "₹": "rupee rupees rs", "₽": "rubles", "₩": "won", "₪": "shekels",
    "mph": "", "kph": "kmh kmph", "Hz": "hertz", "J": "joule joules", "kJ": "kilojoule kilojoules",
    "N": "newton newtons", "W": "watt watts", "kW": "kilowatt kilowatts", "V": "volt volts", "K": "kelvin",
    "Pa": "pascal pascals", "kPa": "kilopascal kilopascals",
}  # fmt: skip
_UNITS = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
_DIMENSIONLESS = {"°", "rad"}
_LENGTHS = ("mm", "cm", "m", "km", "in", "ft", "yd", "mi")
_INCH = Fraction(254, 10000)
_POUND = Fraction(45359237, 10**5)
_GALLON = 231 * _INCH**3

# What a unit is made of and how much of that: m, g, s; units that are not here measure something of their own.
_SIZES: dict[str, tuple[Fraction | int, str]] = {
    "nm": (Fraction(1, 10**9), "m"), "µm": (Fraction(1, 10**6), "m"), "mm": (Fraction(1, 1000), "m"),
    "cm": (Fraction(1, 100), "m"), "km": (1000, "m"), "in": (_INCH, "m"), "ft": (12 * _INCH, "m"),
    "yd": (36 * _INCH, "m"), "mi": (63360 * _INCH, "m"),
    "mg": (Fraction(1, 1000), "g"), "kg": (1000, "g"), "lb": (_POUND, "g"), "oz": (_POUND / 16, "g"),
    "L": (Fraction(1, 1000), "m^3"), "ml": (Fraction(1, 10**6), "m^3"), "gal": (_GALLON, "m^3"),
    "qt": (_GALLON / 4, "m^3"), "pt": (_GALLON / 8, "m^3"),
    "ms": (Fraction(1, 1000), "s"), "min": (60, "s"), "h": (3600, "s"), "day": (86400, "s"), "week": (604800, "s"),
    "year": (12, "month"), "cent": (Fraction(1, 100), "dollar"),
    "mph": (63360 * _INCH / 3600, "m*s^-1"), "kph": (Fraction(1000, 3600), "m*s^-1"),
    "N": (1000, "g*m*s^-2"), "J": (1000, "g*m^2*s^-2"), "kJ": (10**6, "g*m^2*s^-2"), "W": (1000, "g*m^2*s^-3"),
    "kW": (10**6, "g*m^2*s^-3"), "Pa": (1000, "g*m^-1*s^-2"), "kPa": (10**6, "g*m^-1*s^-2"),
}  # fmt: skip

_NOT_UNITS = (
    "and or plus minus times over to of from mod modulo by sqrt pi sin cos tan cot sec csc log ln exp lim max gcd lcm"
    " choose then than but not is are equals remainder for if when where with without squared cubed least most more"
    " less about approximately"
)
_TEMPERATURE = re.compile(r"^(?:°|degrees?)\s*(C|F|celsius|fahrenheit)$", re.IGNORECASE)
UNIT_WORD = r"(?:(?:[^\W\d_]|[°$€£¥'])+(?:-[A-Za-z]+)*\.?(?:\s*\^\s*\{?-?[1-9]\}?)?)"
"""One word of a unit, with a power, as a regular expression."""
_UNIT = re.compile(rf"^{UNIT_WORD}(?:\s*(?:/|\*|\\cdot|\s)\s*{UNIT_WORD}){{0,7}}$")
_FACTOR = re.compile(
    r"\s*(?P<sign>/|\*|\\cdot(?![A-Za-z])|\bper\b)?\s*(?:(?P<word>square|sq\.?|cubic|cu\.?)\s+)?(?P<name>(?:[^\W\d_]|[$€£¥₹₽₩₪¢])+)\.?"
    r"(?:\s*\^\s*\{?\s*(?P<power>-?\s*[1-9])\s*\}?|\s+(?P<after>squared|cubed)\b)?\s*"
)
_OVER = re.compile(r"\\frac\s*\{\s*([A-Za-z]+)\s*\}\s*\{\s*([A-Za-z]+(?:\s*\^\s*\{?\s*[23]\s*\}?)?)\s*\}")
_NO_VARIABLES = "\u3040"
"""The first letter of scripts that variables are not taken from."""


def read_unit(text: str) -> str | None:
    """The canonical name of a unit ("cm^2" for an area, "m*s^-1" for a speed).

    "" for none or an unknown one, None if the text is no unit.
    """
    text = text.strip().strip(".").strip()
    if degrees := _TEMPERATURE.match(text):
        return "°" + degrees[1][0].upper()
    text = _OVER.sub(r"\1/\2", text.replace("\\Omega", "ohm").replace("\\mu", "µ"))
    if (known := _known(text)) is not None:
        return "" if known in _DIMENSIONLESS else known
    if len(text) > 80 or not _UNIT.match(text):
        return None
    # A lone letter is a variable unless it is a known unit or stands inside a longer phrase.
    words = re.findall(r"[^\W\d_]+", text)
    are_variables = words and all(len(word) < 3 and word not in _UNITS and word < _NO_VARIABLES for word in words)
    return None if are_variables or any(f" {word.lower()} " in f" {_NOT_UNITS} " for word in words) else ""


def ratio_of_units(unit: str, other: str) -> Fraction | None:
    """How many of the other make one of the first, None if they measure different things or are not known."""
    (size, dimension), (other_size, other_dimension) = _measure(unit), _measure(other)
    return size / other_size if dimension == other_dimension else None


def is_left_out_of(unit: str, rate: str) -> bool:
    """Whether a rate such as dollars per hour is given in its first unit alone, dollars."""
    factors, rate_factors = unit.split("*"), rate.split("*")
    per = [factor for factor in rate_factors if "^-" in factor]
    return bool(per) and sorted([*factors, *per]) == sorted(rate_factors)


def _known(text: str) -> str | None:
    """`cm^2`, `square centimeters`, `m s^{-1}`, `miles per hour` with canonical names; None where one is unknown."""
    powers: Counter[str] = Counter()
    end = 0
    while end < len(text):
        match = _FACTOR.match(text, end)
        unit = match and (_UNITS.get(match["name"]) or _UNITS.get(match["name"].lower()))
        if not match or not unit:
            return None
        power = int((match["power"] or "1").replace(" ", ""))
        if word := match["word"] or match["after"]:
            if unit not in _LENGTHS and unit != "s":
                return None
            power = 3 if word.startswith("cu") else 2
        powers[unit] += -power if match["sign"] in ("/", "per") else power
        end = match.end()
    units = sorted(powers.keys() - _DIMENSIONLESS if len(powers) > 1 else powers)
    return "*".join(unit if powers[unit] == 1 else f"{unit}^{powers[unit]}" for unit in units)


@lru_cache(maxsize=1024)
def _measure(unit: str) -> tuple[Fraction, tuple[tuple[str, int], ...]]:
    """Size of a canonical unit in m, g, s and units of their own, and the powers of these."""
    size, powers = Fraction(1), Counter[str]()
    for name, power in _factors(unit):
        factor_size, basis = _SIZES.get(name, (1, name))
        size *= Fraction(factor_size) ** power
        for base, base_power in _factors(basis):
            powers[base] += power * base_power
    return size, tuple(sorted((base, power) for base, power in powers.items() if power))


def _factors(unit: str) -> list[tuple[str, int]]:
    """`m*s^-1` as m with 1, s with -1."""
    return [(name, int(power or 1)) for name, _, power in (factor.partition("^") for factor in unit.split("*"))]
