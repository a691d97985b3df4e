"""mlx_lm serves, generates with and fuses what `train` leaves, and says what `infer` says."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ENVIRONMENT, succeed
from tests.parity.serving import free_port, serving

openai = pytest.importorskip("openai", reason="the parity extra is not installed")

QUESTIONS = ["What is 12 + 7?", "Tom has 5 apples. He buys 4 more. How many apples does Tom have?"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    succeed(folder, "train", "--debug", "--num-examples", "40")
    return folder


@pytest.fixture(scope="module")
def client(trained: Path) -> Iterator["openai.OpenAI"]:
    """An OpenAI client of a real `mlx_lm.server` process."""
    port = free_port()
    with serving(trained, port):
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60, max_retries=0)


def ours(folder: Path, question: str, *arguments: str) -> dict:
    options = ("--json", "--temperature", "0", "--max-new-tokens", "48")
    return json.loads(succeed(folder, "infer", "--prompt", question, *options, *arguments).stdout)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_served_chat_is_our_answer(client: "openai.OpenAI", trained: Path, question: str) -> None:
    expected = ours(trained, question)
    served = client.chat.completions.create(
        model="default_model", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48
    )
    assert served.choices[0].message.content.strip() == expected["text"].strip()
    assert served.usage.prompt_tokens == expected["prompt_tokens"]
    if question == QUESTIONS[0]:  # the base answers the other one alike
        assert expected["text"] != ours(trained, question, "--no-adapter")["text"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_served_completion_is_our_answer(client: "openai.OpenAI", trained: Path, question: str) -> None:
    from mlxmath.data.templates import get_template, joined

    served = client.completions.create(
        model="default_model", prompt=joined(get_template("tutor").prompt(question)), temperature=0, max_tokens=48
    )
    assert served.choices[0].text.strip() == ours(trained, question)["text"].strip()


def mlx_lm(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "mlx_lm", *arguments], cwd=folder, env=ENVIRONMENT | {"COLUMNS": "200"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_generate_and_fuse_take_the_folders(trained: Path) -> None:
    question = QUESTIONS[0]
    expected = ours(trained, question)["text"].strip()
    generate = ("generate", "--prompt", question, "--max-tokens", "48", "--temp", "0", "--verbose", "False")
    said = mlx_lm(trained, *generate, "--model", "mlx_model", "--adapter-path", "adapters")
    assert said.strip() == expected
    mlx_lm(trained, "fuse", "--model", "mlx_model", "--adapter-path", "adapters", "--save-path", "fused")
    assert mlx_lm(trained, *generate, "--model", "fused").strip() == expected
