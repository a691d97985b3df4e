"""Rating: blind, in a fair order, and nothing that was said is lost."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlxmath.runtime.sealed import sealed_line
from mlxmath.studio.desk import Desk
from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import ratings_of
from mlxmath.studio.sources import grader_disagrees, problems_in, source
from tests.helpers import wait_until
from tests.studio.answers import RUN, begin, evaluation, hidden, kept, rate, rating, solutions

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e\" onclick=\"x"


@pytest.fixture
def run(folder: Path) -> Path:
    return evaluation(folder / "evaluation_results" / "x")


def test_ten_pairs_are_rated_and_each_line_stands_alone(run: Path, folder: Path, client: TestClient) -> None:
    text = begin(client)
    for number in range(10):
        assert f"{number} of 10 rated" in text
        text = rate(client, text, ("left", "right", "same", "both bad")[number % 4])
        assert len(kept(folder)) == number + 1
    assert "Nothing is left to rate" in text and "10 of 10 pairs are rated by Ann" in text
    lines = kept(folder)
    assert len({line["pair"] for line in lines}) == 10
    for line in lines:
        assert {line["left_label"], line["right_label"]} == {"base", "tuned"}
        assert line["left_fingerprint"] == f"f-{line['left_label']}" and line["source"] == "evaluation_results/x"
        assert line["problem"].removeprefix("b/") in line["left_text"] and line["right_text"] != line["left_text"]
        assert (line["left_correct"], line["right_correct"]) in ((False, False), (True, False), (False, True))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert [line["verdict"] for line in lines[:4]] == ["left", "right", "same", "both bad"]


def test_the_page_says_what_the_server_notes(run: Path, folder: Path, client: TestClient) -> None:
    text = begin(client)
    left, right = solutions(text)
    rate(client, text, "left")
    (line,) = kept(folder)
    for side, shown in (("left", left), ("right", right)):
        assert re.search(r"We add in way \d\d", line[f"{side}_text"])[0] in shown  # type: ignore[index]


def test_nothing_on_the_page_depends_on_the_order_but_the_places_of_the_texts(
    run: Path, studio: Studio, client: TestClient
) -> None:
    begin(client)
    seen: dict[bool, str] = {}
    for number in range(100):
        client.app._app.state.board.desk = Desk(f"secret {number}".encode())  # type: ignore[attr-defined]
        text = begin(client)
        shown = client.app._app.state.board.desk.get(hidden(text)["ticket"])  # type: ignore[attr-defined]
        seen[shown.is_swapped] = text.replace(shown.ticket, "TICKET")
        if len(seen) == 2:
            break
    (left, right), (other_left, other_right) = solutions(seen[False]), solutions(seen[True])
    bare = lambda text: text.replace("right_step", "left_step").replace("Solution B", "Solution A")  # noqa: E731
    assert bare(left) == bare(other_right) and bare(right) == bare(other_left) and bare(left) != bare(right)
    without = [page.replace(one, "").replace(other, "") for page, one, other in
               ((seen[False], left, right), (seen[True], other_left, other_right))]  # fmt: skip
    assert without[0] == without[1]
    assert "f-base" not in seen[True] and "f-tuned" not in seen[True] and "base</" not in left + right


def test_the_order_is_fair_and_only_the_secret_tells_it(run: Path, studio: Studio) -> None:
    found = source(studio, "evaluation_results/x")
    pair = problems_in(run).pairs(found, 0, 1)[0]
    orders = [Desk().show(pair, "Ann").is_swapped for _ in range(400)]
    assert 140 < sum(orders) < 260  # 6 standard deviations
    desk = Desk()
    raters = [desk.show(pair, f"rater {number}").is_swapped for number in range(400)]
    assert 140 < sum(raters) < 260
    assert len({desk.show(pair, "Ann").is_swapped for _ in range(5)}) == 1
    assert len({desk.show(pair, "Ann").ticket for _ in range(5)}) == 5


def test_the_gold_answer_is_hidden_and_whether_it_was_seen_is_noted(
    run: Path, folder: Path, clients: Callable[..., TestClient], studio: Studio
) -> None:
    client = clients(studio)
    text = begin(client)
    assert "right answer <b>" not in text
    gold = client.post("/rate/gold", data={"ticket": hidden(text)["ticket"]}, headers={"HX-Request": "true"})
    assert "right answer <b>1</b>" in gold.text and "<html" not in gold.text
    text = rate(client, text, "left")
    rate(client, text, "left")
    assert [line["gold_seen"] for line in kept(folder)] == [True, False]


def test_a_studio_to_look_at_shows_results_alone(run: Path, studio: Studio, clients: Callable[..., TestClient]) -> None:
    ratings_of(studio).add(rating(0, "left"))
    client = clients(Studio(studio.folder, read_only=True))
    for path in ("/rate", "/rate/next?source=evaluation_results/x&rater=Ann"):
        assert client.get(path).status_code == 403
    text = client.get("/rate/results").text
    assert "base or tuned?" in text and "<form" not in text and client.get("/rate/pairs.jsonl").status_code == 200


def test_undo_and_skip(run: Path, folder: Path, client: TestClient, studio: Studio) -> None:
    first = begin(client)
    second = rate(client, first, "left")
    again = client.post("/rate/undo", data=hidden(second)).text
    assert solutions(again) == solutions(first) and "0 of 10 rated" in again
    assert [line["verdict"] for line in kept(folder)] == ["left", "undone"]
    assert ratings_of(studio).all() == []
    rate(client, again, "right")
    assert [one.verdict for one in ratings_of(studio).all()] == ["right"]
    nothing = client.post("/rate/undo", data=hidden(second) | {"rater": "Bob"}).text
    assert "there is nothing to undo" in nothing and len(kept(folder)) == 3
    rate(client, second, "same")
    rate(client, first, "same")  # the one before the last is now the last
    last = client.post("/rate/undo", data=hidden(second)).text
    assert solutions(last) == solutions(first)
    rate(client, last, "left")
    client.post("/rate/undo", data=hidden(second))
    client.post("/rate/undo", data=hidden(second))
    rate(client, first, "right")
    text = begin(client)
    skipped = solutions(text)
    for _ in range(9):
        assert "kept" not in text
        text = client.post("/rate/skip", data=hidden(text)).text
    assert "9 were skipped" in text and "1 of 10 pairs are rated" in text
    back = client.post("/rate/skipped", data=RUN).text
    assert solutions(back) == skipped


def test_a_changed_verdict_replaces_the_earlier_one_of_the_same_rater(
    run: Path, folder: Path, client: TestClient, studio: Studio
) -> None:
    first = begin(client)
    rate(client, first, "left")
    rate(client, first, "right", comment=" sign lost ")
    (found,) = ratings_of(studio).all()
    assert found.verdict == "right" and found.comment == "sign lost" and len(kept(folder)) == 2
    rate(client, client.get("/rate/next", params=RUN | {"rater": "Bob"}).text, "same")
    assert [one.rater for one in ratings_of(studio).all()] == ["Ann", "Bob"]
    text = begin(client)
    while "Nothing is left" not in text:
        text = rate(client, text, "same")
    again = begin(client, again="on")
    assert "You have rated this pair before" in again and hidden(again)["again"] == "on"
    assert solutions(again) == solutions(first)  # the oldest rating


def test_rated_again_a_pair_may_be_skipped_and_undo_brings_the_earlier_verdict_back(
    run: Path, folder: Path, client: TestClient, studio: Studio
) -> None:
    first = text = begin(client)
    seen = []
    while "Nothing is left" not in text:
        seen.append(solutions(text))
        text = rate(client, text, "same")
    text = begin(client, again="on")
    for expected in (*seen, seen[0]):  # the oldest first, and that again when all were skipped
        assert solutions(text) == expected
        text = client.post("/rate/skip", data=hidden(text)).text
    before = ratings_of(studio).all()
    assert "Nothing is left" in rate(client, first, "left")
    undone = client.post("/rate/undo", data=hidden(first)).text
    assert solutions(undone) == seen[0] and "undone" in undone and "10 of 10 rated" in undone
    assert ratings_of(studio).all() == before and kept(folder)[-1] == kept(folder)[0]
    last = client.post("/rate/undo", data=hidden(first)).text  # then the one before
    assert solutions(last) == seen[-1] and ratings_of(studio).all() == before[:-1]


def test_the_first_wrong_step_is_marked(run: Path, folder: Path, client: TestClient) -> None:
    text = begin(client)
    assert text.count('name="left_step"') == 4  # three lines, and none of them
    text = rate(client, text, "left", right_step="2")
    (line,) = kept(folder)
    assert line["right_wrong_step"] == 2 and line["right_wrong_text"].startswith("So $x^{")
    assert line["left_wrong_step"] is None
    for wrong in ("0", "4", "-1", "²", "1e9", "9" * 5000):
        answer = client.post("/rate/verdict", data=hidden(text) | {"verdict": "left", "left_step": wrong})
        assert answer.status_code == 422 and "expected a number from 1 to 3" in answer.text
    for wrong in ("better", "", "undone"):
        answer = client.post("/rate/verdict", data=hidden(text) | {"verdict": wrong, "comment": "well"})
        assert answer.status_code == 422 and "Not kept: verdict" in answer.text and ">well</textarea>" in answer.text
    assert len(kept(folder)) == 1


def test_filters_and_answers_that_are_equal(folder: Path, client: TestClient, studio: Studio) -> None:
    evaluation(folder / "evaluation_results" / "x")
    found = source(studio, "evaluation_results/x")
    pairs = problems_in(folder / found.folder).pairs(found, 0, 1)
    assert len(pairs) == 10 and sum(map(grader_disagrees, pairs)) == 5
    assert "0 of 5 rated" in begin(client, disagree="on")
    evaluation(folder / "same", num=3, response="the same\n")
    text = client.get("/rate/next", params={"source": "same", "rater": "Ann"}).text
    assert "There is nothing to rate" in text


def test_answers_are_rated_as_they_come(folder: Path, client: TestClient, run: Path) -> None:
    path = run / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]))
    assert "There is nothing to rate" in client.get("/rate/next", params=RUN).text
    path.write_bytes(b"".join(lines[:12]) + lines[12][:50])
    wait_until(lambda: "0 of 2 rated" in begin(client), "the new answers are not read", 10)


def test_a_rating_that_cannot_be_written_is_not_said_to_be_kept(
    run: Path, folder: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = begin(client)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mlxmath.studio.ratings.os.fsync", full)
        answer = client.post(
            "/rate/verdict", data=hidden(text) | {"verdict": "left", "left_step": "2", "comment": "hm"}
        )
    assert answer.status_code == 422 and "Not kept: cannot write" in answer.text and "free some space" in answer.text
    assert (folder / "studio" / "ratings.jsonl").read_bytes() == b""
    assert (
        solutions(answer.text)[1] == solutions(text)[1] and 'value="2" checked' in answer.text and ">hm<" in answer.text
    )
    rate(client, answer.text, "left")
    assert len(kept(folder)) == 1


def test_what_a_studio_before_this_one_has_shown_is_not_rated(run: Path, folder: Path, client: TestClient) -> None:
    form = hidden(begin(client)) | {"ticket": "of-another", "verdict": "left"}
    answer = client.post("/rate/verdict", data=form)
    assert "cannot know its order" in answer.text and solutions(answer.text) and not (folder / "studio").exists()
    assert client.post("/rate/gold", data=form).status_code == 422


@pytest.mark.parametrize(
    "wrong",
    [{"rater": ""}, {"rater": "x" * 61}, {"rater": "a\x00b"}, {"source": "../.."}, {"source": "/etc"}, {"source": ""},
     {"source": "absent"}, {"one": "2"}, {"one": "-1"}, {"one": ""}, {"other": HOSTILE}, {"source": "a\0b"}],
)  # fmt: skip
def test_what_cannot_be_chosen_is_said(run: Path, client: TestClient, wrong: dict[str, str]) -> None:
    answer = client.get("/rate/next", params=RUN | wrong)
    assert answer.status_code == 422 and 'role="alert"' in answer.text and "<script>d" not in answer.text


def test_hostile_texts_are_text(folder: Path, client: TestClient) -> None:
    evaluation(folder / "evaluation_results" / "x", labels=(HOSTILE, "tuned"), gold=HOSTILE, question=HOSTILE)
    path = folder / "evaluation_results" / "x" / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_bytes(b"".join(
        sealed_line({k: v for k, v in line.items() if k != "checksum"} | {"response": f"{line['response']}{HOSTILE}"})
        for line in lines
    ))  # fmt: skip
    pages = [begin(client), client.get("/rate").text, client.get("/rate", params={"source": RUN["source"]}).text]
    pages.append(client.post("/rate/gold", data=hidden(pages[0])).text)
    pages.append(rate(client, pages[0], "left", comment=HOSTILE, left_step="1"))
    pages.append(client.get("/rate/results").text)
    for page in pages:
        assert "<script>d" not in page and "<img" not in page and "\u202e" not in page and 'onclick="x' not in page
    assert kept(folder)[0]["comment"] == HOSTILE


def test_results_say_who_is_preferred_and_how_many_more_it_takes(
    folder: Path, studio: Studio, client: TestClient
) -> None:
    assert "Nothing is rated yet" in client.get("/rate/results").text
    ratings = ratings_of(studio)
    for number in range(12):
        ratings.add(rating(number, "left" if number < 8 else "right", rater="Ann", right=(True, False)))
    text = client.get("/rate/results").text
    assert "No preference is shown yet" in text and re.search(r"<b>\d+ more</b> rated problems", text)
    assert "66.7 % (95 % Wilson interval 39.1 to 86.2" in text and "Ann and the grader" in text and "12 of 12" in text
    for number in range(12, 40):
        ratings.add(rating(number, "left", rater="Ann"))
        ratings.add(rating(number, "left", rater="Bob"))
    text = client.get("/rate/results").text
    assert "<b>base is preferred</b>" in text and "Ann and Bob" in text and "100.0 % (87.9 to 100.0)" in text


def test_fresh_answers_are_asked_for_by_a_command_line(folder: Path, client: TestClient, studio: Studio) -> None:
    for name in ("model", "adapters"):
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "problems.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    form: dict[str, Any] = {
        "rater": "Ann", "model": "model", "adapter": ["", "adapters"], "benchmark": "problems.jsonl", "limit": "5",
        "samples": "2", "temperature": "0.7", "run_name": "fresh",
    }  # fmt: skip
    line = "mlxmath evaluate --mlx-path=model --adapter-path=adapters --compare --benchmark=./problems.jsonl --limit=5"
    line = f"{line} --resume --samples=2 --temperature=0.7 --run-name=fresh"
    assert f'<pre id="fresh-line">{line}</pre>' in client.get("/rate/command", params=form).text
    assert "--no-adapter" in client.get("/rate/command", params=form | {"adapter": ""}).text
    for wrong in ({"model": "../x"}, {"model": "absent"}, {"benchmark": "nothing"}, {"limit": "0"}, {"samples": ""},
                  {"temperature": "-1"}, {"temperature": "0"}, {"benchmark": "gsm8k=/etc/passwd"}, {"samples": "x"},
                  {"run_name": "../y"}, {"run_name": ""}, {"adapter": "/etc"}):  # fmt: skip
        told = client.get("/rate/command", params=form | wrong)
        assert told.status_code == 200 and "<pre" not in told.text, wrong
        assert client.post("/rate/start", data=form | wrong).status_code == 422
    assert client.post("/rate/start", data=form | {"rater": " "}).status_code == 422 and not studio.jobs.all()
    answer = client.post("/rate/start", data=form)
    place = answer.headers["location"]
    assert answer.status_code == 303 and place.startswith("/rate/next?rater=Ann&source=evaluation_results%2Ffresh&job=")
    text = client.get(place).text
    (job,) = studio.jobs.all()
    assert job.kind == "evaluate" and line in text and re.search("Waiting for answers|No answers", text)
    studio.jobs.stop(job)
