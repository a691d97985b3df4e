# ruff: noqa: E501
"""Right programs: what SymPy's names give, one a line with what it prints, and programs as models write them."""

LINES = r"""
Abs(-3) → 3
acos(1) + acosh(1) + asin(0) + asinh(0) + atan(0) + atanh(0) + atan2(0, 1) → 0
acot(1) + acsc(1) + asec(1) + acoth(2) + acsch(1) + asech(1) → acoth(2) + log(1 + sqrt(2)) + 3*pi/4
erfc(oo) → 0
str(Dummy('z')) → _z
Add(x, x) + Mul(2, x) + Pow(x, 2) → x**2 + 4*x
And(x > 1, x < 3) → (x > 1) & (x < 3)
Or(x > 1, Not(x > 0)) → (x <= 0) | (x > 1)
apart(1/(x**2 - 1), x) → -1/(2*(x + 1)) + 1/(2*(x - 1))
together(1/x + 1/y) → (x + y)/(x*y)
arg(I) → pi/2
bernoulli(2) → 1/6
binomial(10, 3) → 120
cancel((x**2 - 1)/(x - 1)) → x + 1
catalan(4) → 14
cbrt(27) → 3
ceiling(Rational(7, 2)) + floor(Rational(7, 2)) → 7
collect(x*y + x, x) → x*(y + 1)
Circle(Point(0, 0), 2).area → 4*pi
Complement(FiniteSet(1, 2), FiniteSet(2)) → {1}
Contains(2, Interval(0, 3)) → True
conjugate(1 + I) → 1 - I
cos(0) + cosh(0) + sec(0) + sech(0) → 4
cot(pi/4) + csc(pi/2) + coth(1) → coth(1) + 2
sin(pi/6) + sinh(0) + tan(0) + tanh(0) → 1/2
deg(pi) + rad(180) → pi + 180
degree(x**3 + x, x) → 3
denom(Rational(2, 3)) + numer(Rational(2, 3)) → 5
Derivative(x**2, x).doit() → 2*x
diff(x**3, x) → 3*x**2
Matrix([[1, 2], [3, 4]]).det() → -2
det(Matrix([[1, 2], [3, 4]])) → -2
diag(1, 2).T → Matrix([[1, 0], [0, 2]])
div(x**2 - 1, x - 1) → (x + 1, 0)
quo(x**2 - 1, x - 1) + rem(x**2, x - 1) → x + 2
divisor_count(12) + divisor_sigma(6) → 18
divisors(12) → [1, 2, 3, 4, 6, 12]
dsolve(Eq(f(x).diff(x), f(x)), f(x)) → Eq(f(x), C1*exp(x))
E + oo → oo
EulerGamma.n(3) + Catalan.n(3) + GoldenRatio.n(3) → 3.11
Eq(2*x, 4) → Eq(2*x, 4)
Equality(2*x, 4).lhs → 2*x
exp(log(3)) + ln(1) → 3
expand((x + 1)**2) → x**2 + 2*x + 1
expand_log(log(exp(2))) → 2
expand_trig(sin(2*x)) → 2*sin(x)*cos(x)
eye(2) + ones(2, 2) - zeros(2, 2) → Matrix([[2, 1], [1, 2]])
factor(x**2 - 1) → (x - 1)*(x + 1)
factor_list(x**2 - 1) → (1, [(x - 1, 1), (x + 1, 1)])
factorial(5) + factorial2(5) + subfactorial(4) → 144
factorint(360) → {2: 3, 3: 2, 5: 1}
primefactors(360) → [2, 3, 5]
primitive_root(7) + totient(7) + mobius(6) → 10
perfect_power(8) → (2, 3)
fibonacci(10) + lucas(5) → 66
FiniteSet(1, 2).union(FiniteSet(3)) → {1, 2, 3}
Float(0.5) + Integer(2) → 2.50000000000000
fraction(x/y) → (x, y)
frac(Rational(7, 2)) → 1/2
gamma(5) → 24
gcd(12, 18) + lcm(4, 6) + igcd(8, 12) + ilcm(2, 3) → 28
gcdex(x**2 - 1, x - 1) → (0, 1, x - 1)
Ge(x, 1) → x >= 1
harmonic(3) → 11/6
integrate(x**2, (x, 0, 1)) → 1/3
Integral(x, x).doit() → x**2/2
integer_nthroot(27, 3) → (3, True)
interpolate([1, 4, 9], x) → x**2
Intersection(Interval(0, 2), Interval(1, 3)) → Interval(1, 2)
is_quad_residue(2, 7) → True
isprime(97) → True
Le(x, 1).rhs → 1
Lt(x, 1) → x < 1
Gt(x, 1) → x > 1
Ne(x, 1) → Ne(x, 1)
limit(sin(x)/x, x, 0) → 1
Limit(sin(x)/x, x, 0).doit() → 1
Line(Point(0, 0), Point(1, 1)).distance(Point(0, 1)) → sqrt(2)/2
linsolve([x + y - 3, x - y - 1], [x, y]) → {(2, 1)}
nonlinsolve([x**2 - 4, y - x], [x, y]) → {(-2, -2), (2, 2)}
logcombine(log(2) + log(3)) → log(6)
Max(1, 2) + Min(1, 2) → 3
maximum(sin(x), x, Interval(0, pi)) → 1
minimum(x**2, x, Interval(-1, 1)) → 0
Mod(17, 5) + 17 % 5 → 4
mod_inverse(3, 7) → 5
multiplicity(2, 24) → 3
N(pi, 10) → 3.141592654
nextprime(10) + prevprime(10) + prime(5) + primepi(10) → 33
list(primerange(2, 12)) → [2, 3, 5, 7, 11]
nroots(x**2 - 2, n=5) → [-1.4142, 1.4142]
nsimplify(0.25) → 1/4
nthroot_mod(2, 2, 7) → 3
sqrt_mod(2, 7) → 3
partition(5) + prod([2, 3]) → 13
Identity(2).as_explicit() → Matrix([[1, 0], [0, 1]])
comp(0.1, 0.1) → True
EmptySet.union(FiniteSet(1)) → {1}
Integers.contains(2) → True
Naturals0.contains(0) → True
Piecewise((x, x > 0), (0, True)).subs(x, 3) → 3
Polygon(Point(0, 0), Point(4, 0), Point(0, 3)).area → 6
Triangle(Point(0, 0), Point(4, 0), Point(0, 3)).area → 6
Segment(Point(0, 0), Point(3, 4)).length → 5
Point(0, 0).distance(Point(3, 4)) → 5
Poly(x**2 + 2*x, x).all_coeffs() → [1, 2, 0]
resultant(x - 1, x - 2, x) → -1
powdenest((x**2)**3) → x**6
powsimp(x**2 * x**3) → x**5
Product(x, (x, 1, 4)).doit() → 24
product(x, (x, 1, 4)) → 24
summation(x, (x, 1, 10)) → 55
Sum(x, (x, 1, 10)).doit() → 55
radsimp(1/(sqrt(2) + 1)) → -1 + sqrt(2)
ratsimp(1/x + 1/y) → (x + y)/(x*y)
sqrtdenest(sqrt(3 + 2*sqrt(2))) → 1 + sqrt(2)
re(1 + 2*I) + im(1 + 2*I) → 3
real_root(-8, 3) → -2
reduce_inequalities([x > 1, x < 3], x) → (1 < x) & (x < 3)
solve_univariate_inequality(x**2 < 4, x) → (-2 < x) & (x < 2)
solve_poly_inequality(Poly(x - 1, x), '<') → TypeError: SymPy is given no str here
root(8, 3) → 2
roots(x**2 - 3*x + 2, x) → {2: 1, 1: 1}
rsolve(g(n) - 2*g(n - 1), g(n), {g(0): 1}) → 2**n
series(exp(x), x, 0, 3).removeO() → x**2/2 + x + 1
sign(-3) → -1
simplify(sin(x)**2 + cos(x)**2) → 1
solve([x + y - 3, x - y - 1], [x, y]) → {x: 2, y: 1}
solve(x**2 - 5*x + 6, x) → [2, 3]
solve_linear_system(Matrix([[1, 1, 3], [1, -1, 1]]), x, y) → {x: 2, y: 1}
solveset(x**2 - 1, x, domain=S.Reals) → {-1, 1}
Tuple(1, 2) → (1, 2)
trailing(8) → 3
trigsimp(sin(x)**2 + cos(x)**2) → 1
Union(Interval(0, 1), Interval(2, 3)) → Union(Interval(0, 1), Interval(2, 3))
Range(5) → Range(0, 5, 1)
S(1)/3 + S.Half → 5/6
euler(4) + zeta(2) → pi**2/6 + 5
erf(0) → 0
n_order(2, 7) → 3
invert(3, 7) → 5
(x**2 + y).subs(x, 2) → y + 4
(x**2 + y).subs({x: 2, y: 1}) → 5
pi.evalf(5) → 3.1416
math.comb(5, 2) + math.gcd(12, 18) + math.isqrt(17) → 20
len([p for p in combinations(range(5), 2) if sum(p) == 4]) → 2
sum(i**2 for i in range(1, 11)) → 385
max([3, 1, 2]) - min(3, 1) + abs(-2) → 4
round(2.567, 2) → 2.57
f"{7/2:.1f} and {x + 1}" → 3.5 and x + 1
sorted({3: 1, 1: 2}.items()) → [(1, 2), (3, 1)]
[1, 2, 3][::-1] → [3, 2, 1]
", ".join([str(i) for i in range(3)]) → 0, 1, 2
7 // 2 + 7 % 2 + 2**10 → 1028
int("42") + float("0.5") → 42.5
1 < 2 < 3 → True
"yes" if 3 in [1, 2, 3] else "no" → yes
Fraction(1, 3) + Fraction(1, 6) → 1/2
Matrix([[2, 0], [0, 3]]).eigenvals() → {2: 1, 3: 1}
Matrix([[1, 2], [3, 4]]).inv() * Matrix([1, 1]) → Matrix([[-1], [1]])
Rationals.contains(2) → True
Naturals.contains(2) → True
"""
"""`expression → output`, where x and y are symbols, n one of whole numbers, f and g functions."""

BEFORE = """
import math
from sympy import *
from itertools import combinations
from fractions import Fraction
x, y = symbols("x y")
n = Symbol("n", integer=True)
f = Function("f")
g = Function("g")
"""

WHOLE = {
    "a function": (
        "from sympy import symbols, Eq, solve\n\ndef solution():\n    x = symbols('x')\n    found = solve(Eq(2*x + 3, 11), x)\n"
        "    return found[0]\n\nprint(solution())",
        "4\n",
    ),
    "loops": (
        "count = 0\nfor a in range(1, 30):\n    if a % 2:\n        continue\n    for b in range(a, 30):\n        if a*a + b*b == 841:\n"
        "            count += 1\n            break\nwhile count < 5:\n    count += 2\nprint('count', count, sep=': ', end='.')",
        "count: 5.",
    ),
    "lists and dictionaries": (
        "seen = {}\nfor w in [3, 1, 3]:\n    seen[w] = seen.get(w, 0) + 1\nrow = [0] * 3\nrow[1] = 7\nrow.append(8)\n"
        "print(seen, row, len(row))",
        "{3: 2, 1: 1} [0, 7, 0, 8] 4\n",
    ),
    "variables of comprehensions": (
        "from sympy import symbols, solve\nx = symbols('x')\ndef of(k):\n    return [k * x for k in range(k)], k\n"
        "sols = solve(x**2 - 4, x)\npos = [x for x in sols if x > 0]\nprint(x, solve(x**2 - 9, x), pos, of(3))\n"
        "row = [[1, 2], [3]]\nprint([i for row in row for i in row], {len(row) for row in row}, row, [of(1) for x in [5]])\n"
        "print([[x for x in range(y)] + [y] for y in [1, 2]], sum(x for x in [1, 2]), x)\n[row for row in [1 / 0]]\n",
        "x [-3, 3] [2] ([0, x, 2*x], 3)\n[1, 2, 3] {1, 2} [[1, 2], [3]] [([0], 1)]\n[[0, 1], [0, 1, 2]] 3 x\n"
        "ZeroDivisionError: division by zero",
    ),
    "after an error in a comprehension": ("for i in [1]:\n    k = 7\nprint([k for k in [3]], k)\n[k for k in [1, 2] if k / (k - 1)]",
                                          "[3] 7\nZeroDivisionError: division by zero"),
    "lists that are changed": (
        "a = [1]\nb = a\nb += [2]\nb += (3,)\nd = {'k': a}\nd['k'] *= 2\ne = a\ne = e + [9]\nt = (1,)\nu = t\nu += (2,)\n"
        "print(a, b, t, u)\nc = dict(d)\nc['m'] = 1\nprint(c, d, dict([(1, 2)]))\na += 1",
        "[1, 2, 3, 1, 2, 3] [1, 2, 3, 1, 2, 3] (1,) (1, 2)\n{'k': [1, 2, 3, 1, 2, 3], 'm': 1} {'k': [1, 2, 3, 1, 2, 3]} {1: 2}\n"
        "TypeError: 'int' object is not iterable",
    ),
    "an error": ("x = 1\nprint(x)\nprint(y1)", "1\nNameError: name 'y1' is not defined"),
    "division": ("1/0", "ZeroDivisionError: division by zero"),
    "recursion": ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nprint(f(10))", "3628800\n"),
}  # fmt: skip
