"""What each address answers: a module a page, with its `ROUTES`; what it shows is found by the modules beside this."""

from mlxmath.studio.pages import compare, evaluations, new, rate, runs

PAGES = (runs, new, compare, evaluations, rate)
"""In the order of the menu."""
