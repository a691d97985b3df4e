"""All pages in a browser: nothing goes wrong in them, on a phone and in the dark."""

from collections.abc import Callable
from typing import Any

from tests.studio.browser import PHONE, is_dark, is_too_wide


def test_all_pages_of_an_empty_folder_on_a_phone_in_the_dark(visit: Callable[..., Any]) -> None:
    tab = visit("/runs", PHONE, is_dark=True)
    origin = tab.url.removesuffix("/runs")
    for path in ("/runs", "/new", "/compare", "/evaluations", "/rate"):
        tab.goto(origin + path)
        assert tab.url.endswith(path) and tab.get_by_role("heading", level=1).is_visible()
        assert is_dark(tab) and not is_too_wide(tab), path
