"""Which answers are the same, kind by kind: each rule with cases of its own and its limits."""

import pytest

from mlxmath.grading import equal, grade

SAME = [
    ("2 x 3", "6"),
    ("2x + 3", "3 + 2x"),
    # functions and roots, exactly
    (r"\cos(\pi/2)", "0"),
    (r"\tan \pi", "0"),
    (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1"),
    ("7!!", "105"),
    ("-3./2", "-1.5"),
    # units are what they measure
    ("36 km/h", r"10\,\frac{\text{m}}{\text{s}}"),
    ("60 miles per hour", "88 ft/s"),
    ("2.54 cm", "1 inch"),
    ("2 L", r"2000\text{ cm}^3"),
    ("250 ms", "0.25 s"),
    ("3 kJ", "3000 N m"),
    (r"9.8\ \text{m}\cdot\text{s}^{-2}", "9.8 m/s^2"),
    ("15 dollars per hour", "$15"),
    ("1 dollar and 25 cents", "1.25"),
    ("1h 15m", "75 minutes"),
    ("5 pounds", "£5"),
    ("5 lbs", "80 oz"),
    ("21st", "21"),
    # words
    ("five sevenths", r"\frac57"),
    ("two and three eighths", "2.375"),
    ("nine hundredths", "0.09"),
    # bases
    ("FF_{16}", "255"),
    (r"(1101)_2", "13"),
    ("0x1F", "31"),
    ("0.101_2", "0.625"),
    # repeating decimals
    ("0.3\u0304", r"\frac13"),
    ("0.66 (repeating)", r"\frac23"),
    (r"0.\wideparen{12}", r"\frac{4}{33}"),
    # signs
    ("－3", "-3"),
    ("10⁻¹²", "10^{-12}"),
    ("101₂", "5"),
    ("√16", "4"),
    ("∛27", "3"),
    ("3 • 4", "12"),
    ("⁻5", "-5"),
    ("+/- 3", r"\pm 3"),
    # labels
    ("A(1,2)", "(1,2)"),
    ("(D)", r"\textbf{(D)}\ 14"),
    # names
    ("f(t)=t^2", "f(x)=x^2"),
    ("y=Ce^{-x}", "y=Ae^{-x}"),
    (r"\frac{x^3}{3}+C", r"\frac{1}{3}x^3+D"),
    ("f(x)=ax+b", "f(x)=mx+c"),
    ("y=x", "x=y"),
    ("F=ma", "a=F/m"),
    # complex values
    (r"-\frac12\pm\frac{\sqrt3}{2}i", r"\frac{-1\pm i\sqrt3}{2}"),
    (r"2(\cos 60^\circ + i\sin 60^\circ)", r"1+i\sqrt3"),
    (r"2\operatorname{cis} 120^\circ", r"-1+i\sqrt3"),
    (r"\text{cis}\frac{\pi}{2}", "i"),
    # sets of numbers
    (r"-3\le x\le 3", r"|x|\le 3"),
    ("x<-2 or x>2", "|x|>2"),
    ("1 < x < 5", "|x-3|<2"),
    (r"x \ge -1 \text{ and } x < 4", "[-1,4)"),
    # names that algebra misreads
    (r"(\gamma^2-1)m", r"m\gamma^2-m"),
    ("E_0 + E_1", "E_1 + E_0"),
    ("2sin(x)cos(x)", r"\sin 2x"),
    ("x^4+x^3+x^2", "x^2(x^2+x+1)"),
    ("x^2+y^2=25", "y^2+x^2=5^2"),
    (r"\ln x^2", r"2\ln|x|"),
    (r"x⁻¹ + √(x+1)", r"\frac1x + \sqrt{x+1}"),
    ("0.4545...", r"\frac{5}{11}"),
    (r"3\,\mathrm{m\,s^{-1}}", "3 m/s"),
    # times and dates
    ("12 noon", "12:00 PM"),
    ("half past four", "4:30"),
    ("quarter to 5", "4:45"),
    ("2024-07-04", "July 4, 2024"),
]
DIFFERENT = [
    ("2x + 3", "6"),
    ("5x-5", "-25"),
    ("y = 2X+3", "6"),
    ("0.00000000000001", "0"),
    ("1e-13", "0"),
    (r"\sqrt{10^{40}+1}", "10^{20}"),
    (r"\sqrt{10^{14}+1}", "10^7"),
    (r"1-\frac{1}{3^{90}}", "1"),
    (r"\cos(10^{-9})", "1"),
    ("3!!", "720"),
    ("5 m/s", "5 m/s^2"),
    ("12 cm", "12 cm^2"),
    ("36 km/h", "36 m/s"),
    ("£5", "€5"),
    ("¥100", "$100"),
    ("5 J", "5 W"),
    ("x=3", "y=3"),
    ("f(t)=t^2", "g(x)=x^2"),
    ("f(t)=t^2", "f(x)=x^3"),
    ("y=Ce^{-x}", "y=Ae^{x}"),
    ("y=2x", "x=2y"),
    ("(C)", r"\textbf{(D)}\ 14"),
    ("x_2", "x_3"),
    ("GG_{16}", "272"),
    ("0.3\u0304", "0.3"),
    ("10¹²", "10^1"),
    ("√16", "24"),
    ("A(1,2)", "(2,1)"),
    ("|x|<3", "|x|>3"),
    ("|x-3|<2", "1 < x < 4"),
    (r"x > -1 \text{ and } x < 4", r"x > -1 \text{ or } x < 4"),
    (r"\frac{E_{0}^{4} e^{2}}{2}", r"\frac{E_{1}^{2} e^{2}}{2}"),
    (r"m c^{2}(\gamma^{2}-3)", r"m c^{2}(\gamma^{2}-1)"),
    ("y''+y=0", "y'+y=0"),
    ("-1./1", "-1./3"),
    (r"\text{cis} 60^\circ", r"\text{cis} 120^\circ"),
    (r"\pm 3i", "3i"),
    ("quarter past 5", "4:45"),
    ("2024-07-04", "April 7, 2024"),
]
RESPONSES = [
    ("The answer is:\n\\[\n42\n\\]", "42", True),
    ("Final answer:\n$$\n\\frac{1}{2}\n$$", "0.5", True),
    ("It takes 2 hours and 30 minutes.", "150 minutes", True),
    ("It takes 2 hours and 30 minutes.", "30", False),
    ("They meet on March 5.", "March 5", True),
    ("They meet on March 5.", "5", False),
    ("The answer is 101 in base 2.", "5", True),
    ("Therefore, 15 students (60% of them) passed.", "15", True),
    ("My answer: 5 (but it could be 6)", "5", True),
    ("The point is (3, 4).", "(3,4)", True),
    ("The area is 25π.", r"25\pi", True),
    ("The area is 25π.", "25", False),
    ("It equals 2√3.", r"2\sqrt3", True),
    ("It is 2^10.", "1024", True),
    ("It is 3.0 × 10^8 m/s.", "3e8", True),
    ("The total is 25 (12 + 13).", "25", True),
    ("The answer is option (B) 25", "B", True),
    ("The answer is option (B) 25", "25", True),
    ("答案是12。共3步。", "12", True),
]


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_same(answer: str, gold: str) -> None:
    assert equal(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer: str, gold: str) -> None:
    assert not equal(answer, gold)


@pytest.mark.parametrize(("response", "gold", "is_correct"), RESPONSES)
def test_responses(response: str, gold: str, is_correct: bool) -> None:
    assert grade(response, gold).correct is is_correct
