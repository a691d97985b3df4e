"""`distill` as a user runs it: against an endpoint that fails in every way, on a local model, killed and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlxmath.commands.distill import main
from mlxmath.grading import grade
from tests.data.material import write_lines
from tests.distillation.scripted import KEY, Request, Script, completion, scripted, solution, sum_of
from tests.helpers import ENVIRONMENT, command, invoke, json_lines, run, start, succeed, wait_until

NUM_PROBLEMS, SAMPLES = 40, 2


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole, as a killed process may have left another."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.endswith("}")]


def write_problems(folder: Path, count: int = NUM_PROBLEMS) -> str:
    problems = [{"problem": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(count)]
    return write_lines(folder / "problems.jsonl", problems)


def misbehave(request: Request, body: dict[str, Any], attempt: int) -> None:
    """Each eighth problem fails in its own way at first; answers are right, or wrong, or not faithful."""
    a, b = sum_of(body)
    answer = completion(solution(a, b))
    if attempt == 1:
        match a % 8:
            case 1:
                return request.reply({"error": {"message": f"broken for {KEY}"}}, 500)
            case 2:
                return request.reply({}, 429, Retry_After="0.2")
            case 3:
                time.sleep(3)
                return request.hang_up()
            case 4:
                return request.cut(answer)
            case 5:
                return request.reply(b'{"choices": [{"mess')
            case 6:
                return request.hang_up()
            case 7:
                return request.reply({"error": {"message": "overloaded"}})
    time.sleep(0.03)
    if a % 5 == 1:
        return request.reply(completion(solution(a, b), reasoning_content=f"I am to add {a} and {b}."))
    if a % 5 == 2:
        return request.reply(completion(solution(a, b + 1)))
    if a % 5 == 3:
        return request.reply(completion(f"{a} + {b} = {a}. {KEY} \\boxed{{{a + b}}}"))
    if a % 5 == 4:
        return request.reply(completion(None, "length", reasoning="Let me think"))
    return request.reply(answer)


def arguments(server: Script, folder: Path, *more: str) -> tuple[str, ...]:
    return (
        "distill", "--teacher-url", server.url, "--teacher-model", "m", "--teacher-key-env", "TEACHER_KEY",
        "--dataset", write_problems(folder), "--decontaminate", "none", "--samples", str(SAMPLES), "--seed", "1",
        "--timeout-s", "2", "--backoff-s", "0.05", "--price-in", "2", "--price-out", "5", *more,
    )  # fmt: skip


def contents(folder: Path) -> str:
    return "".join(p.read_bytes().decode("utf-8", "replace") for p in folder.rglob("*") if p.is_file())


def test_nothing_is_lost_and_nothing_asked_twice_after_kill_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TEACHER_KEY", KEY)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "distilled" / "responses.jsonl"
    with scripted(misbehave) as server:
        process = start(tmp_path, *arguments(server, tmp_path), log=tmp_path / "log")
        wait_until(lambda: len(whole_rows(path)) >= 25 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = whole_rows(path)
        assert 25 <= len(killed) < NUM_PROBLEMS * SAMPLES
        time.sleep(0.3)  # what was under way reaches the server
        before = Counter(server.seen)
        with path.open("ab") as file:
            file.write(b'{"fingerprint": "half a li')
        again = invoke(main, *arguments(server, tmp_path)[1:], code=2)
        assert "use them with --resume" in again.output
        other = invoke(main, *arguments(server, tmp_path, "--resume", "--temperature", "0.9")[1:], code=2)
        assert "temperature: '0.7' there, '0.9' here" in other.output
        assert server.seen == before
        resumed = succeed(tmp_path, *arguments(server, tmp_path, "--resume"))
        assert server.keys == {f"Bearer {KEY}"}

        asked_later = {json.loads(body)["seed"] for body, n in server.seen.items() if n > before[body]}
        assert len(asked_later) == NUM_PROBLEMS * SAMPLES - len(killed)
        assert 0 <= server.answered.total() - len(asked_later) - len(killed) <= 8  # under way at the kill
        finished = server.seen.total()
        invoke(main, *arguments(server, tmp_path, "--resume")[1:])
        assert server.seen.total() == finished

    found = whole_rows(path)
    assert found[: len(killed)] == killed
    assert Counter((row["key"], row["sample"]) for row in found) == {
        (row["key"], sample): 1 for row in found for sample in range(SAMPLES)
    }
    assert len(found) == NUM_PROBLEMS * SAMPLES
    assert re.search(r"80 of 80 answered, 800 tokens in, 1,600 out, cost 0\.0096", resumed.stderr)
    assert KEY not in contents(tmp_path) + resumed.stderr + resumed.stdout and "[key]" in contents(tmp_path)
    check_dataset(tmp_path / "distilled", found)


def check_dataset(folder: Path, responses: list[dict[str, Any]]) -> None:
    """Each response is kept or rejected for a reason, and the verdicts are the grader's."""
    kept, rejected = json_lines(folder / "solutions.jsonl"), json_lines(folder / "rejected.jsonl")
    graded = {
        (row["id"], row["sample"]): grade(row["response"], row["answer"], truncated=row["finish_reason"] == "length")
        for row in responses
    }
    assert {(row["id"], row["sample"]): row["correct"] for row in kept + rejected} == {
        key: verdict.correct for key, verdict in graded.items()
    }
    reasons = Counter((int(row["id"]) % 5, row["reason"]) for row in rejected)
    each = NUM_PROBLEMS // 5
    assert reasons == {
        (0, "not the best of its problem"): each, (1, "not the best of its problem"): each,
        (2, "wrong answer"): 2 * each, (3, "false equations"): 2 * each, (4, "truncated"): 2 * each,
    }  # fmt: skip
    assert Counter(int(row["id"]) % 5 for row in kept) == {0: each, 1: each}
    order = [(int(row["id"]), row["sample"]) for row in rejected]
    assert order == sorted(order)
    for row in kept:
        assert row["solution"].startswith("<think>\nI am to add") == (int(row["id"]) % 5 == 1)
    card = (folder / "card.md").read_text()
    for line in (
        "| problems | 40 |  |", "| problems with an accepted solution | 16 | 40.0 % |", "| solutions judged | 80 |  |",
        "| right by the grader | 48 | 60.0 % |", "| kept | 16 | 20.0 % |", "| false equations | 16 | 20.0 % |",
        "| cost | 0.0096 |", "| 2 | 16 | 40.0 % |",
    ):  # fmt: skip
        assert line in card, line
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_waits_for_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TEACHER_KEY", KEY)
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def slowly(request: Request, body: dict[str, Any], attempt: int) -> None:
        time.sleep(0.3)
        request.reply(completion(solution(*sum_of(body))))

    path = tmp_path / "distilled" / "responses.jsonl"
    with scripted(slowly) as server:
        process = start(tmp_path, *arguments(server, tmp_path), log=tmp_path / "log")
        wait_until(lambda: len(whole_rows(path)) >= 5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "waiting for the answers under way" in (tmp_path / "log").read_text()
        assert len(json_lines(path)) == server.answered.total() == server.seen.total() < 80


def test_a_second_ctrl_c_waits_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TEACHER_KEY", KEY)
    over = threading.Event()
    with scripted(lambda request, body, n: over.wait(60)) as server:
        process = start(tmp_path, *arguments(server, tmp_path, "--timeout-s", "60"), log=tmp_path / "log")
        for sign in (lambda: server.at_once, lambda: "waiting for the answers" in (tmp_path / "log").read_text()):
            wait_until(sign)
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        over.set()


def test_more_samples_and_other_thresholds_use_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed questions are rejected with their reason, and asked again later."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    mended = False

    def act(request: Request, body: dict[str, Any], attempt: int) -> None:
        a, b = sum_of(body)
        if a == 7 and not mended:
            return request.reply({"error": {"message": "unsuitable"}}, 400)
        return request.reply(completion(solution(a, b)))

    with scripted(act) as server:
        _, *given = arguments(server, tmp_path)
        invoke(main, *given, "--num-examples", "8", "--samples", "1")
        failed = [row for row in json_lines(Path("distilled/rejected.jsonl")) if row["reason"] == "not answered"]
        assert [(row["id"], row["detail"]) for row in failed] == [("7", "HTTP 400: unsuitable")]
        assert "| not answered | 1 | 12.5 % |" in Path("distilled/card.md").read_text()
        mended = True
        result = invoke(main, *given, "--num-examples", "10", "--keep", "all", "--max-characters", "60", "--resume")
        assert server.seen.total() == 8 + 2 + 2 + 9
        assert "distilled: 7 of 20 answers are there already" in result.output
    kept, rejected = json_lines(Path("distilled/solutions.jsonl")), json_lines(Path("distilled/rejected.jsonl"))
    reasons = Counter(row["reason"] for row in rejected)
    assert len(kept) + len(rejected) == 20 and reasons["repeated"] == len(kept) and reasons["too long"] > 0


def test_what_is_there_is_judged_by_the_golds_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    act = lambda request, body, n: request.reply(completion(solution(*sum_of(body))))  # noqa: E731
    with scripted(act) as server:
        given = ("--dataset", write_problems(tmp_path, 2), "--decontaminate", "none", "--samples", "1")
        given = (*given, "--teacher-url", server.url, "--teacher-model", "m")
        invoke(main, *given)
        problems = json_lines(tmp_path / "problems.jsonl")
        mended = [problems[0], problems[1] | {"answer": "17"}]
        write_lines(Path("problems.jsonl"), mended)
        invoke(main, *given, "--resume")
        assert server.seen.total() == 2
    kept, rejected = json_lines(Path("distilled/solutions.jsonl")), json_lines(Path("distilled/rejected.jsonl"))
    assert [row["answer"] for row in kept] == ["1"] and [row["answer"] for row in rejected] == ["17"]


@pytest.fixture(scope="module")
def local(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled model and an adapter that solves some of its problems."""
    folder = tmp_path_factory.mktemp("local")
    for name in ("mlx_model", "adapters"):
        shutil.copytree(debug_run / name, folder / name, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


LOCAL = (
    "distill", "--teacher", "mlx_model:adapters", "--dataset", "demo", "--num-examples", "8", "--samples", "2",
    "--max-tokens", "48", "--concurrency", "2", "--min-validity", "0",
)  # fmt: skip


def test_a_local_teacher_killed_and_resumed_gives_the_same_and_its_output_trains(local: Path) -> None:
    succeed(local, *LOCAL, "--output-path", "whole")
    process = start(local, *LOCAL, "--output-path", "killed", log=local / "log")
    path = local / "killed" / "responses.jsonl"
    wait_until(lambda: len(whole_rows(path)) >= 3 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = whole_rows(path)
    assert 3 <= len(killed) < 16
    result = succeed(local, *LOCAL, "--output-path", "killed", "--resume")
    assert f"{len(killed)} of 16 answers are there already" in result.stderr

    def texts(folder: str) -> dict[tuple[str, int], str]:
        return {(row["key"], row["sample"]): row["response"] for row in json_lines(local / folder / "responses.jsonl")}

    assert texts("killed") == texts("whole") and len(texts("whole")) == 16
    for name in ("solutions.jsonl", "rejected.jsonl"):
        assert json_lines(local / "killed" / name) == json_lines(local / "whole" / name)
    assert json_lines(local / "whole" / "solutions.jsonl"), (local / "whole" / "card.md").read_text()
    trained = succeed(
        local, "train", "--debug", "--dataset", "whole/solutions.jsonl", "--max-steps", "2", "--adapter-path", "student"
    )
    assert "problem -> solution" in trained.stderr and (local / "student" / "adapters.safetensors").exists()


def test_rank_only_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"problem": "What is 2 + 3?", "solution": text, "answer": "5", "finish_reason": reason}
        for text, reason in [
            ("It is plain to see that it is 5.", "stop"), (solution(2, 3), "stop"), (solution(2, 4), "stop"),
            (solution(2, 3), "length"),
        ]
    ]  # fmt: skip
    write_lines(Path("mine.jsonl"), lines)
    invoke(main, "--rank-only", "mine.jsonl")
    invoke(main, "--rank-only", "mine.jsonl", "--keep", "all")
    assert [row["sample"] for row in json_lines(Path("distilled/solutions.jsonl"))] == [0, 1]
    assert [row["reason"] for row in json_lines(Path("distilled/rejected.jsonl"))] == ["wrong answer", "truncated"]
    assert "| keep | all |" in Path("distilled/card.md").read_text()
    write_lines(Path("other.jsonl"), lines[:1])
    assert "choose another --output-path" in invoke(main, "--rank-only", "other.jsonl", code=2).output
    invoke(main, "--rank-only", "other.jsonl", "--overwrite", "--min-characters", "5")
    assert len(json_lines(Path("distilled/solutions.jsonl"))) == 1
    Path("bare.jsonl").write_text(json.dumps({"problem": "1 + 1?", "solution": "\\boxed{2}"}) + "\n")
    assert "no column with the gold answer" in invoke(main, "--rank-only", "bare.jsonl", code=2).output
    write_lines(Path("hole.jsonl"), [lines[0], lines[0] | {"answer": None}])
    assert "row 2 of hole.jsonl has no gold answer" in invoke(main, "--rank-only", "hole.jsonl", code=2).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one of --teacher-url, --teacher and --rank-only, found none"),
        (("--teacher", "a", "--rank-only", "b"), "found --rank-only and --teacher"),
        (("--teacher-url", "https://h/v1"), "--teacher-url needs --teacher-model"),
        (("--teacher-url", "ftp://h"), "--teacher-url (option): give a URL that begins with"),
        (("--teacher-url", "https://user:pass@h/v1"), "a key does not belong into the URL"),
        (("--teacher-url", "https://h/v1?key=secret"), "give the URL without what follows ?"),
        (("--teacher-url", "http://a..b/v1", "--teacher-model", "m"), "--teacher-url http://a..b/v1: no such address"),
        (("--teacher-url", "http://h:99999/v1"), "ort out of range 0-65535"),
        (("--teacher-url", "http://h y/v1"), "give a URL that begins with"),
        (("--teacher-url", "https://h", "--teacher-model", "m", "--teacher-key-env", "NOT_SET"), "NOT_SET holds no"),
        (("--teacher", "a", "--teacher-extra", "[1]"), "give a JSON object"),
        (("--teacher", "a", "--temperature", "0"), "several --samples would all be the same at 0"),
        (("--teacher", "a", "--max-characters", "3"), "is less than --min-characters"),
        (("--teacher", "a", "--dataset", "demo"), "a is not a model folder"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2) and message in " ".join(result.output.split()), result.output
    assert "user:pass" not in result.output and "secret" not in result.output and list(tmp_path.iterdir()) == []


def test_no_answer_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems = write_problems(tmp_path, 3)
    with scripted(lambda request, body, n: request.reply({"error": "no"}, 400)) as server:
        arguments = ("--dataset", problems, "--teacher-url", server.url, "--teacher-model", "m", "--samples", "1")
        found = " ".join(invoke(main, *arguments, code=1).output.split())
    assert (
        "none of 3 questions got an answer (HTTP 400: no)" in found
        and len(json_lines(Path("distilled/rejected.jsonl"))) == 3
    )


@pytest.mark.parametrize("where", ["problem", "solution"])
def test_numbers_longer_than_python_reads_are_judged(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = {"problem": "What is 2 + 3?", "solution": solution(2, 3), "answer": "5"}
    long = f"{'9' * 5000} = {'9' * 5000}/1. {line[where]}"
    Path("mine.jsonl").write_text(json.dumps(line | {where: long}))
    invoke(main, "--rank-only", "mine.jsonl")
    assert [row[where] for row in json_lines(Path("distilled/solutions.jsonl"))] == [long]


def test_what_an_endpoint_says_reaches_the_terminal_as_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = {"error": {"message": "no \x1b]0;pwned\x07\x1b[2J\ud800\u202e"}}
    with scripted(lambda request, body, n: request.reply(hostile, 400)) as server:
        arguments = ("--dataset", write_problems(tmp_path, 1), "--teacher-url", server.url, "--teacher-model", "m")
        found = invoke(main, *arguments, "--decontaminate", "none", code=1)
    said = found.stderr + "".join(row["detail"] for row in json_lines(Path("distilled/rejected.jsonl")))
    assert "pwned" in said and all(c.isprintable() or c == "\n" for c in said)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("mine.jsonl").write_text(json.dumps({"problem": "2 + 3?", "solution": solution(2, 3), "answer": "5"}))
    for folder in ("file", "file/folder", "/proc/nowhere"):
        found = invoke(main, "--rank-only", "mine.jsonl", "--output-path", folder, code=1).output
        assert found.startswith(f"error: cannot write {folder}: ") and found.count("\n") == 1


def test_a_second_process_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TEACHER_KEY", KEY)
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def slowly(request: Request, body: dict[str, Any], attempt: int) -> None:
        time.sleep(0.2)
        request.reply(completion(solution(*sum_of(body))))

    with scripted(slowly) as server:
        first = subprocess.Popen(
            command(*arguments(server, tmp_path)), cwd=tmp_path, env=os.environ | ENVIRONMENT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        path = tmp_path / "distilled" / "responses.jsonl"
        wait_until(lambda: whole_rows(path))
        for more in ("--resume", "--overwrite", "--temperature=0.9 --overwrite"):
            before = whole_rows(path)
            second = run(tmp_path, *arguments(server, tmp_path, *more.split()))
            assert second.returncode == 2 and f"by `mlxmath distill`, process {first.pid} on" in second.stderr
            assert whole_rows(path)[: len(before)] == before
        first.kill()
        first.wait()
