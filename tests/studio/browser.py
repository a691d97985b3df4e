"""The studio as a user has it: a server in a process of its own, and a Chromium that tells what goes wrong in a page.

The fixtures `serving` and `visit` are in `conftest.py`, `chromium` is in that of all tests.
"""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tests.helpers import ENVIRONMENT, command

WIDE, PHONE = (1200, 900), (360, 740)
"""Width and height, in CSS pixels."""


REPLACED = ("htmx:afterRequest,", "htmx:sendAbort,")
"""What htmx says of a request that another one has taken the place of; of one that fails it says more."""


class Served:
    """`mlxmath studio` on a folder, until `end`.

    Attributes:
        url: its origin.
        token: lets in.
        process: may be killed, too.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [*command("studio", str(folder)), "--no-browser", "--port", "0", *options], cwd=folder, env=ENVIRONMENT,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        parts = urlsplit(self.process.stdout.readline().strip())
        assert parts.query.startswith("token="), "the studio printed no address"
        self.url, self.token = f"{parts.scheme}://{parts.netloc}", parts.query.removeprefix("token=")

    def address(self, path: str) -> str:
        """A page's address that lets a browser in."""
        return f"{self.url}{quote(path, safe='/?&=%')}{'&' if '?' in path else '?'}token={self.token}"

    def end(self) -> None:
        """As Ctrl-C does; it may have been killed already."""
        with self.process:  # waits, and closes the pipe
            self.process.send_signal(signal.SIGINT)


def opened(browser: Any, served: Served, path: str, size: tuple[int, int], *, is_dark: bool) -> tuple[Any, list[str]]:
    """A page of a studio in a tab, and a list that collects what goes wrong in it.

    That is: whatever is said on the console (what the CSP refuses is), errors of scripts, dialogs, requests to anywhere
    else, and answers of the server that are its own fault.
    """
    troubles: list[str] = []
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if is_dark else "light",
        reduced_motion="reduce",
    )
    tab = context.new_page()
    note: Callable[[str], None] = troubles.append
    tab.on("console", lambda said: None if said.text.startswith(REPLACED) else note(f"console: {said.text}"))
    tab.on("pageerror", lambda error: note(f"error: {error}"))
    tab.on("dialog", lambda dialog: (note(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda asked: None if _is_own(asked.url, served) else note(f"request: {asked.url}"))
    tab.on("response", lambda found: note(f"{found.status}: {found.url}") if found.status >= 500 else None)
    tab.goto(served.address(path))
    tab.wait_for_url(lambda url: "token=" not in url)
    return tab, troubles


def _is_own(url: str, served: Served) -> bool:
    return url.startswith((f"{served.url}/", "data:", "blob:"))


def is_too_wide(tab: Any) -> bool:
    """Whether a page scrolls sideways, once its styles are there."""
    tab.wait_for_load_state("load")
    return bool(tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def is_dark(tab: Any) -> bool:
    """Whether a page is bright text on a dark ground, once its styles are there."""
    tab.wait_for_load_state("load")
    colors = "['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k].match(/\\d+/g).map(Number))"
    ink, ground = tab.evaluate(colors)
    return sum(ink) > 600 and sum(ground) < 150
