"""What a call may name: functions and constants of SymPy, of `math` and of Python, and attributes of their values."""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SYMPY = words(
    """
    Abs Add And Catalan Circle Complement Contains Derivative Dummy E EmptySet Eq Equality EulerGamma FiniteSet
    Float Function Ge GoldenRatio Gt I Identity Integer Integers Integral Intersection Interval Le Limit Line Lt
    Matrix Max Min Mod Mul N Naturals Naturals0 Ne Not Or Piecewise Point Polygon Poly Pow Product Range Rational
    Rationals Reals S Segment Sum Symbol Triangle Tuple Union acos acosh acot acsc apart arg asec asin asinh atan
    atan2 atanh bernoulli binomial cancel catalan cbrt ceiling collect comp conjugate cos cosh cot coth csc degree
    denom deg det diag diff div divisor_count divisor_sigma divisors dsolve euler exp expand expand_log expand_trig
    eye factor factorial factorial2 factor_list factorint fibonacci floor fraction frac gamma gcd gcdex harmonic
    igcd ilcm im integer_nthroot integrate interpolate invert is_quad_residue isprime lcm limit linsolve ln log
    logcombine lucas minimum maximum mobius mod_inverse multiplicity nextprime nonlinsolve nroots nsimplify
    nthroot_mod numer ones oo partition perfect_power pi powdenest powsimp prevprime prime primefactors primepi
    primerange primitive_root prod product quo rad radsimp ratsimp re real_root reduce_inequalities rem resultant
    root roots rsolve sec sech series sign simplify sin sinh solve solve_linear_system solve_poly_inequality
    solve_univariate_inequality solveset sqrt sqrt_mod sqrtdenest subfactorial summation symbols tan tanh together
    totient trailing trigsimp zeros zeta n_order erf erfc acoth acsch asech
    """
)
"""Functions, classes and constants of SymPy; those that this version lacks are left out."""

MATH = words(
    """
    acos acosh asin asinh atan atan2 atanh ceil comb copysign cos cosh degrees dist e erf exp fabs factorial floor
    fmod fsum gamma gcd hypot inf isclose isfinite isnan isqrt lcm log log10 log1p log2 nan perm pi pow prod radians
    remainder sin sinh sqrt tan tanh tau trunc
    """
)

ATTRIBUTES = words(
    """
    T all_coeffs append apart args as_numer_denom as_real_imag base boundary cancel charpoly closure col cols coeff
    coeffs col_insert complement conjugate contains count cross degree denominator det diagonalize diff discriminant
    distance doit dot eigenvals eigenvects end evalf exp expand extend factor free_symbols gcd get imag index inf
    insert integrate intersect intersection inv is_disjoint length as_explicit is_even is_finite is_integer
    is_negative is_odd is_positive is_prime is_rational is_real is_subset is_zero items join keys lcm lead_coeff
    left lhs limit measure midpoint n nroots nullspace numerator p pop q quo radius rank real real_roots rem remove
    removeO reverse rhs right row row_insert rows rref shape simplify solve sort start subs sup together trace
    transpose trigsimp union values xreplace area perimeter bit_length norm copy lstrip rstrip strip isdigit
    """
)
"""Of SymPy's values, lists, dictionaries and numbers."""

KEYWORDS = words(
    """
    all check commutative complex deep dict domain doit dps evaluate even exclude extension finite force frac full
    gens infinite integer maxn modulus multiple n negative nonnegative nonpositive nonzero numerical odd positive
    prime quick quintics rational real reverse sep end set simplify start strict subs symbol symbols trig visual
    zero default cls particular step base
    """
)
"""Of calls."""
