"""Rows of a new run are shown as they are trained on: the very tokens and mask, and why others are left out."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlxmath.data.cache import TokenRows
from mlxmath.data.codec import codec_of, load_tokenizer
from mlxmath.runtime.console import size
from mlxmath.studio import rows, worker
from mlxmath.studio.form import Draft, check, draft_of
from mlxmath.studio.place import Studio
from mlxmath.studio.preview import device_mark, memory_bar, remedy, rows_request
from mlxmath.weights.hub import DEMO_FOLDER
from tests.helpers import run, wait_until

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e\u2066\x1b[2J</textarea>"
SOLVED = [
    {"question": f"Tom has {i} pears and buys {i + 3} more. How many pears?", "solution": f"{i} + {i + 3} = {2 * i + 3}"
     f"\n#### {2 * i + 3}", "level": i % 4}
    for i in range(9)
]  # fmt: skip
PAIRS = [{"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": f"It is {i}."} for i in range(5)]


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def ask(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What the process beside answers, in this process."""
    monkeypatch.chdir(studio.folder)

    def asked(draft: Draft, **how: Any) -> dict[str, Any]:
        checked = check(studio, draft)
        assert checked.is_good, (checked.wrong, checked.trouble)
        return worker.answer(rows_request(studio, checked, **how))

    return asked


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, []), ({"data.train_on_prompt": "yes"}, ["--train-on-prompt"]),
        ({"data.max_seq_len": "32"}, ["--max-seq-len", "32"]),
        ({"data.max_seq_len": "50", "data.overflow": "truncate"}, ["--max-seq-len", "50", "--overflow", "truncate"]),
        ({"data.filters": "level <= 1"}, ["--filters", "level <= 1"]),
    ],
)  # fmt: skip
def test_tokens_and_mask_are_those_of_prepare(
    ask: Callable[..., dict[str, Any]], folder: Path, given: dict[str, str], options: list[str]
) -> None:
    write(folder / "rows.jsonl", SOLVED)
    shown = ask(Draft("train", given={"model.model": "demo", "data.dataset": "rows.jsonl"} | given), tokens=True)
    done = run(folder, "prepare", "--model", "demo", "--dataset", "rows.jsonl", *options)
    assert done.returncode == 0, done.stderr
    (cached,) = (folder / "cache").glob("*.pkl")  # the same rows: the command has found those of the page
    cache = TokenRows.load(cached)
    assert shown["count"] == len(cache) and len(shown["rows"]) == min(20, len(cache))
    for one in shown["rows"]:
        ids, mask = cache.row(one["number"])
        assert [part[2] for part in one["parts"]] == ids.tolist()
        assert [part[1] for part in one["parts"]] == mask.tolist()
        assert (one["tokens"], one["targets"]) == (len(ids), int(mask.sum()))


def test_runs_of_text_are_the_text_and_split_where_the_mask_does(
    ask: Callable[..., dict[str, Any]], folder: Path
) -> None:
    write(folder / "rows.jsonl", [*SOLVED, {"question": "Né en 中国?", "solution": "é中 = 3 🙂 \n#### 3"}])
    draft = Draft("train", given={"model.model": "demo", "data.dataset": "rows.jsonl"})
    codec = codec_of(load_tokenizer(DEMO_FOLDER))
    apart, together = (ask(draft, tokens=tokens)["rows"] for tokens in (True, False))
    for one, other in zip(apart, together, strict=True):
        whole = codec.decode([part[2] for part in one["parts"]])
        assert "".join(part[0] for part in one["parts"]) == "".join(part[0] for part in other["parts"]) == whole
        flags = [part[1] for part in other["parts"]]
        assert all(before != after for before, after in pairwise(flags)) and set(flags) == {0, 1}
        assert "Solution" not in "".join(text for text, flag, _ in other["parts"] if flag)
    assert "🙂" in "".join(part[0] for part in together[-1]["parts"])


def test_pairs_and_prompts_are_what_their_methods_learn_from(ask: Callable[..., dict[str, Any]], folder: Path) -> None:
    write(folder / "pairs.jsonl", PAIRS)
    write(
        folder / "rows.jsonl",
        [*SOLVED, {"question": "Why?", "solution": "It depends on many things, and nobody knows all of them."}],
    )
    pairs = ask(Draft("dpo", given={"model.model": "demo", "data.dataset": "pairs.jsonl"}), start=2)
    assert pairs["count"] == 10 and pairs["rows"][0]["label"] == "pair 2, chosen"
    assert next(text for text, flag, _ in pairs["rows"][1]["parts"] if flag).startswith("It is 1.")
    kto = ask(Draft("dpo", given={"model.model": "demo", "data.dataset": "pairs.jsonl", "dpo.loss_type": "kto"}))
    assert {one["label"].partition(", ")[2] for one in kto["rows"]} == {"desirable", "undesirable"}
    asked = ask(Draft("grpo", given={"model.model": "demo", "data.dataset": "rows.jsonl"}))
    assert asked["count"] == 9 and asked["rows"][2]["targets"] == 0 and asked["rows"][2]["label"].endswith("answer 7")
    assert "1 left out: " in asked["facts"][1]


def test_rows_that_are_left_out_say_why(ask: Callable[..., dict[str, Any]], folder: Path) -> None:
    write(folder / "rows.jsonl", [SOLVED[3], SOLVED[0], SOLVED[0], {"question": "", "solution": "x"}, SOLVED[1]])
    draft = Draft("train", given={"model.model": "demo", "data.dataset": "rows.jsonl", "data.filters": "level < 3"})
    found = ask(draft, left_out=True)
    assert [(one["row"], one["reason"]) for one in found["left_out"]] == [
        (1, "does not meet 'level < 3'"), (3, "repeated"), (4, "empty problem"),
    ]  # fmt: skip
    assert found["left_out"][0]["text"] == SOLVED[3]["question"] and found["count"] == 3
    assert ask(draft)["count"] == 2


def test_a_page_reads_its_own_rows_alone(
    ask: Callable[..., dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "rows.jsonl", [{"question": f"What is {i}?", "solution": f"{i}"} for i in range(300)])
    draft = Draft("train", given={"model.model": "demo", "data.dataset": "rows.jsonl"})
    ask(draft)
    (opened,) = [found for found in rows._opened.values() if found.count == 300]
    read: list[int] = []
    original = opened.row

    def noted(number: int) -> Any:
        read.append(number)
        return original(number)

    monkeypatch.setattr(opened, "row", noted)
    monkeypatch.setattr(rows, "_open", None)  # nothing is prepared again
    assert [one["number"] for one in ask(draft, start=280)["rows"]] == [*range(280, 300)] == read
    assert ask(draft, start=300)["rows"] == []


def test_a_first_look_at_a_longer_file_is_at_its_first_rows(
    ask: Callable[..., dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "rows.jsonl", [{"question": f"What is {i}?", "solution": f"{i}"} for i in range(100)])
    draft = Draft("train", given={"model.model": "demo", "data.dataset": "rows.jsonl"})
    monkeypatch.setattr(rows, "SMALL_BYTES", 100)
    head = ask(draft, count=3, glance=True)
    assert head["is_head"] and not (folder / "cache").exists()
    whole = ask(draft, count=3)
    assert whole["count"] == 100 and not whole["is_head"] and whole["rows"] == head["rows"]
    assert ask(draft, count=3, glance=True)["count"] == 100  # it is there by now


def test_what_is_on_the_hub_or_large_is_not_read_unasked(
    ask: Callable[..., dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "hub" in ask(Draft("train", given={"model.model": "demo", "data.dataset": "org/name"}))["unprepared"]
    write(folder / "rows.jsonl", SOLVED)
    monkeypatch.setattr(rows, "MOST_BYTES", 100)
    draft = Draft("train", given={"model.model": "demo", "data.dataset": "rows.jsonl"})
    assert "large" in ask(draft)["unprepared"]
    assert run(folder, "prepare", "--model", "demo", "--dataset", "rows.jsonl").returncode == 0
    assert ask(draft)["count"] == 9


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("rows.jsonl", b'{"question": "a", "solution": "b"}\n{oops\n', "rows.jsonl:2: expected one JSON object"),
        ("rows.jsonl", b"", "holds no rows"), ("rows.csv", b"\xff\xfe\x00", "rows.csv"),
        ("rows.json", b'{"a": 1', "expected a JSON list of rows"), ("rows.parquet", b"PAR1PAR1", "rows.parquet"),
        ("rows.jsonl", b'{"x": 1}\n', "rows.jsonl"),
    ],
)  # fmt: skip
def test_a_damaged_file_gives_its_sentence(
    ask: Callable[..., dict[str, Any]], folder: Path, name: str, text: bytes, told: str
) -> None:
    (folder / name).write_bytes(text)
    assert told in ask(Draft("train", given={"model.model": "demo", "data.dataset": name}))["error"]


def test_the_plan_is_that_of_the_command(studio: Studio, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    checked = check(studio, Draft("train", "demo", given={"lora.rank": "4", "runtime.memory_limit_gb": "0.012"}))
    assert checked.resolved is not None
    config = checked.resolved.config.model_dump(mode="json")
    found = worker.answer({"what": "plan", "folder": str(folder), "method": "train", "config": config})
    told = run(folder, "plan", "--recipe", "demo", "--lora-rank", "4", "--memory-limit-gb", "0.012")
    assert (
        told.returncode == 1
        and not found["fits"]
        and re.search(rf"in all +{re.escape(size(found['total']))}", told.stdout)
    )
    for name, count, _ in found["parts"]:
        assert re.search(rf"{name} +{re.escape(size(count))}", told.stdout)
    for change, total, _ in found["remedies"]:
        assert f"with {change}: {size(total)}" in told.stdout
    bars, mark = memory_bar(found), device_mark(found)
    assert bars[-1].x + bars[-1].width == pytest.approx(1000, rel=0.01) and 0 < mark < 1000
    assert len(found["remedies"]) >= 1 and draft_of({"use": remedy(found["remedies"][0][0])}).given


def test_hostile_rows_are_text_on_the_page(client: TestClient, folder: Path) -> None:
    write(folder / "rows.jsonl", [{"question": f"{HOSTILE} {i}", "solution": f"{HOSTILE} {i}"} for i in range(3)]
          + [{"question": f"{HOSTILE} 1", "solution": "other"}])  # fmt: skip
    query = "command=train&model=demo&dataset=rows.jsonl"
    for extra in ("", "&row=2&tokens=1", "&left_out=1", "&page=1"):
        page = client.get(f"/new/rows?{query}{extra}")
        assert page.status_code == 200 and not re.search(r"<script>|<img|</textarea>", page.text)
        assert not set(page.text) & set("\u202e\u2066\x1b")
    assert "&lt;script&gt;" in client.get(f"/new/rows?{query}").text
    assert client.get(f"/new/rows?{query}&row=99").status_code == 200
    for wrong in ("row=0", "row=x", "page=-1", "row=" + "9" * 40, "row=²"):
        assert client.get(f"/new/rows?{query}&{wrong}").status_code == 422
    assert client.get("/new/rows?command=train&model=demo&dataset=../rows.jsonl").status_code == 422


def test_the_first_rows_and_the_plan_follow_a_change(client: TestClient, folder: Path) -> None:
    write(folder / "rows.jsonl", SOLVED)
    values = {"command": "train", "model": "demo", "dataset": "rows.jsonl"}
    part = {"HX-Request": "true"}
    first = client.post("/new/check", data=values, headers=part).text
    assert "<html" not in first and "mlxmath train --model demo --dataset rows.jsonl" in first
    key = re.search(r'name="rows_key" value="(\w+)"', first)
    assert key is not None
    again = client.post("/new/check", data=values | {"rows_key": key[1], "lora_rank": "4"}, headers=part).text
    assert "rows_key" not in again and "--lora-rank 4" in again  # the rows are the same, and stay
    other = client.post("/new/check", data=values | {"rows_key": key[1], "template": "plain"}, headers=part).text
    assert "rows_key" in other
    wait_until(lambda: "Tom has 0 pears" in client.get("/new/glance", params=values).text)
    whole = client.post("/new", data=values | {"js": "1", "rows_key": key[1]}).text  # made anew: nothing is shown yet
    assert "Tom has 0 pears" in whole and '<mark class="target">' in whole


@pytest.mark.parametrize("address", ["/new", "/new/start"])
def test_no_rows_are_waited_for_that_do_not_come(client: TestClient, address: str) -> None:
    for chosen in ({}, {"dataset": "rows.jsonl"}):
        page = client.post(address, data={"rows_key": "none", "lora_rank": "0"} | chosen).text
        assert "once the settings are right" in page and "being prepared" not in page
    assert "Choose data" in client.post("/new", data={"rows_key": "none"}).text
