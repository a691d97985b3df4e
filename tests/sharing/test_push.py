"""`push` against a hub on this machine: what goes there, what does not, and what a cut connection costs."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.files import sha256
from mlxmath.runtime.sealed import resealed, sealed_json, unsealed_json
from mlxmath.sharing.contents import contents_of, last_parts, without_paths
from mlxmath.sharing.push import push
from mlxmath.weights.manifest import read_manifest
from tests.helpers import ENVIRONMENT, run, spawn, succeed
from tests.sharing.hub import OWNER, TOKEN, Hub, Repository

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
"""Of huggingface_hub's own use of httpx."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the real one, with somebody logged in."""
    made = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", made.start())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made.models["open/base"] = Repository(False, card={"license": "apache-2.0"})
    made.datasets["openai/gsm8k"] = {"license": ["mit"]}
    yield made
    made.stop()


@pytest.fixture
def adapters(debug_run: Path, tmp_path: Path) -> Path:
    """The debug run's, as if of a base on the hub and of GSM8K."""
    folder = tmp_path / "adapters"
    shutil.copytree(debug_run / "adapters", folder)
    edit(folder / "adapter_config.json", base_model="open/base")
    record = unsealed_json(folder / "run.json", ())
    mixture = [{"name": "openai/gsm8k", "split": "train", "revision": "e53f048856ff", "taken": 7473},
               {"name": "/home/me/secret-project/mine.jsonl", "split": None, "revision": None, "taken": 3}]  # fmt: skip
    record["config"]["model"] |= {"model": "open/base", "quantize": 4, "group_size": 32, "dtype": "float16"}
    record["data"]["mixture"] = json.dumps(mixture)
    sealed_json(folder / "run.json", record)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(resealed(json.loads(path.read_text()) | changes)))


def evaluation(folder: Path, adapter: Path) -> Path:
    """What an evaluation of an adapter leaves, in its essentials."""
    folder.mkdir()
    share = {"value": 0.4321, "low": 0.4, "high": 0.47}
    own = sha256(adapter / "adapters.safetensors")[:16] + "0" * 16
    contestants = [{"label": "base", "model": "m", "adapter": None},
                   {"label": "tuned", "model": "m", "adapter": own}]  # fmt: skip
    results = {
        "settings": {"contestants": contestants, "benchmarks": [{"name": "gsm8k"}]},
        "contestants": {"base": {"accuracy": share, "by": {}}, "tuned": {"accuracy": share, "by": {}}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "model_card.md").write_text(
        "## Evaluation\n\n| tuned | 43.2 % | 40.0 to 47.0 |\n\nMeasured on /home/me/benchmarks/gsm8k.jsonl.\n"
    )
    return folder


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_and_files(hub: Hub, adapters: Path, tmp_path: Path) -> None:
    found = push(adapters, "tuned", evaluations=[evaluation(tmp_path / "evaluated", adapters)])
    there = hub.models[f"{OWNER}/tuned"]
    assert there.private and there.num_commits == 1
    assert set(there.files) == {
        "README.md", "adapter_config.json", "adapters.safetensors", "chat_template.jinja", "loss.png"
    }  # fmt: skip
    for name in ("adapters.safetensors", "chat_template.jinja", "loss.png", "adapter_config.json"):
        assert there.files[name] == (adapters / name).read_bytes()
    card = there.files["README.md"].decode()
    assert card == found.card and found.url == f"{hub.url}/{OWNER}/tuned/commit/{1:040x}"
    told = metadata(card)
    assert told["base_model"] == "open/base" and told["base_model_relation"] == "adapter"
    assert told["datasets"] == ["openai/gsm8k"] and told["license"] == "apache-2.0" and told["library_name"] == "mlx"
    (result,) = told["model-index"][0]["results"]
    assert result["dataset"]["name"] == "gsm8k" and result["metrics"][0]["value"] == 0.4321
    for text in ("`open/base` (licence: apache-2.0)", "`openai/gsm8k`, split train, 7,473 problems, at `e53f048856ff`",
                 "(licence: mit)", "a local file (mine.jsonl)", "| tuned | 43.2 % | 40.0 to 47.0 |",
                 "| training.learning_rate | 0.002 |", "Measured on gsm8k.jsonl.",
                 f'snapshot_download("{OWNER}/tuned")',
                 "mlxmath convert --model open/base --quantize 4 --group-size 32 --dtype float16 --mlx-path base",
                 ):  # fmt: skip
        assert text in card, text


def test_text_of_others_is_text_in_the_card(hub: Hub, adapters: Path, tmp_path: Path) -> None:
    hostile = "x](e)<img src=e>![y](e)|\x1b[2J\u202e`\n<script>"
    edit(adapters / "adapter_config.json", base_model=hostile, revision=hostile)
    record = unsealed_json(adapters / "run.json", None)
    record["data"]["mixture"] = json.dumps(
        [{"name": name, "split": hostile, "revision": hostile, "taken": 3} for name in ("openai/gsm8k", hostile)]
    )
    record |= {"status": hostile, "device": {"device": hostile, "backend": hostile}}
    record["config"]["training"]["optimizer"] = hostile
    sealed_json(adapters / "run.json", record)
    card = push(adapters, "tuned", dry_run=True).card
    assert card is not None
    ours = r"```.*?```|(?<!\\)`[^`\n]*`|!\[loss\.png]\(loss\.png\)"
    shown = re.sub(ours, "", card.split("---\n", 2)[2], flags=re.DOTALL)
    assert "img src" in shown and not re.search(r"<|(?<!\\)(\\\\)*[\[\]]|[^\n -~]", shown)


def test_an_evaluation_s_card_with_markup_is_refused(hub: Hub, adapters: Path, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluated", adapters)
    text = (folder / "model_card.md").read_text()
    for hostile in ("<img src=e>", "![y](e)", "[x]: e"):
        (folder / "model_card.md").write_text(f"{text}\n{hostile}\n")
        with pytest.raises(MlxmathError, match=r"model_card\.md is not what an evaluation writes"):
            push(adapters, "tuned", evaluations=[folder], dry_run=True)


def test_nothing_private_is_sent(hub: Hub, adapters: Path) -> None:
    edit(adapters / "adapter_config.json", base_model=str(Path("/home/me/models/my-base")))
    (adapters / "notes.txt").write_text("mine")
    (adapters / ".env").write_text(f"HF_TOKEN={TOKEN}")
    push(adapters, "me/tuned", public=True)
    assert not hub.models["me/tuned"].private
    sent = b"".join([body for _, _, body, _ in hub.requests] + list(hub.models["me/tuned"].files.values()))
    assert TOKEN.encode() not in sent and b"/home/" not in sent and str(adapters).encode() not in sent
    assert json.loads(hub.models["me/tuned"].files["adapter_config.json"])["base_model"] == "my-base"
    assert "a local model (my-base)" in hub.models["me/tuned"].files["README.md"].decode()
    heads = {(head, method) for method, *_, head in hub.requests}
    assert heads <= {(f"Bearer {TOKEN}", "GET"), (f"Bearer {TOKEN}", "POST"), ("", "PUT")}  # a PUT's address lets it in


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chat_template.jinja", "{{ 'hf_" + "q" * 30 + "' }}"), ("LICENSE", "see /Users/me/licence"),
        ("chat_template.jinja", f"{{# {TOKEN} #}}"), ("chat_template.jinja", "the words of a variable"),
    ],
)  # fmt: skip
def test_keys_and_personal_folders_are_refused(
    hub: Hub, adapters: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv("SOME_SECRET", "the words of a variable")
    (adapters / name).write_text(text)
    with pytest.raises(MlxmathError, match=rf"^{name} .*nothing was pushed") as raised:
        push(adapters, "me/tuned")
    assert text not in str(raised.value) and not hub.models.keys() - {"open/base"}


def test_a_connection_that_is_cut_goes_on(hub: Hub, adapters: Path) -> None:
    """The upload is tried again at once; what is cut for good is an error, after which only the rest is sent."""
    hub.cuts = 2
    push(adapters, "me/tuned")
    assert hub.models["me/tuned"].num_commits == 1 and hub.cuts == 0

    hub.cuts, hub.uploads, hub.objects = 1000, [], {}
    weights = (adapters / "adapters.safetensors").read_bytes()
    with pytest.raises(MlxmathError, match="cut .* run the same command again: what has arrived is not sent again"):
        push(adapters, "me/other")
    assert hub.models["me/other"].num_commits == 0
    hub.cuts = 0
    hub.objects[oid := sha256(adapters / "adapters.safetensors")] = weights  # one file had arrived before
    push(adapters, "me/other")
    assert oid not in hub.uploads and hub.models["me/other"].files["adapters.safetensors"] == weights
    assert hub.models["me/other"].num_commits == 1


def test_the_same_again_is_no_new_commit(hub: Hub, adapters: Path) -> None:
    push(adapters, "me/tuned")
    uploads = len(hub.uploads)
    push(adapters, "me/tuned")
    assert len(hub.uploads) == uploads and hub.models["me/tuned"].num_commits == 1
    assert hub.models["me/tuned"].files["adapters.safetensors"] == (adapters / "adapters.safetensors").read_bytes()


def test_a_public_repository_is_asked_about(hub: Hub, adapters: Path) -> None:
    hub.models["me/tuned"] = Repository(private=False)
    with pytest.raises(InputError, match="there already and public; push with --public"):
        push(adapters, "me/tuned")
    push(adapters, "me/tuned", public=True)
    assert hub.models["me/tuned"].num_commits == 1


def test_what_the_hub_refuses(hub: Hub, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.wrong_yaml = '"license" must be one of them'
    with pytest.raises(MlxmathError, match='does not accept the files: .*"license" must be one of them'):
        push(adapters, "me/tuned", licence="mine")
    hub.wrong_yaml, hub.refuses = "", 403
    with pytest.raises(MlxmathError, match=r"does not let you write to me/tuned \(HTTP status 403\): log in"):
        push(adapters, "me/tuned")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    for name in ("me/tuned", "tuned"):
        with pytest.raises(MlxmathError, match="the hub asks who pushes: log in with `hf auth login`"):
            push(adapters, name)
    with pytest.raises(InputError, match="no name of a repository"):
        push(adapters, "a/b/c")


def test_a_dry_run_sends_nothing(hub: Hub, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(adapters.parent, "push", "adapters", "me/tuned", "--dry-run")
    assert found.returncode == 0, found.stderr
    assert "licence: apache-2.0" in found.stdout and "adapters.safetensors" in found.stderr
    assert {method for method, *_ in hub.requests} == {"GET"} and "me/tuned" not in hub.models
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = run(adapters.parent, "push", "adapters", "me/tuned", "--dry-run")
    assert found.returncode == 0 and "`open/base` (licence: not known)" in found.stdout


def test_the_command_with_an_endpoint(hub: Hub, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_HUB_OFFLINE", "0"), ("HF_HUB_DISABLE_XET", "1"),
                        ("HF_TOKEN", TOKEN)):  # fmt: skip
        monkeypatch.setitem(ENVIRONMENT, name, value)
    found = spawn(adapters.parent, "push", "adapters", "tuned")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == f"{hub.url}/{OWNER}/tuned/commit/{1:040x}"
    assert TOKEN not in found.stdout + found.stderr


def test_models_and_exports(hub: Hub, adapters: Path, debug_run: Path, tmp_path: Path) -> None:
    push(debug_run / "mlx_model", "me/model")
    files = hub.models["me/model"].files
    assert {"config.json", "model.safetensors", "tokenizer.json", "mlxmath.json", "README.md"} <= set(files)
    (tmp_path / "mlxmath.json").write_bytes(files["mlxmath.json"])
    assert read_manifest(tmp_path) == read_manifest(debug_run / "mlx_model")
    assert (
        'load("me/model")' in files["README.md"].decode()
        and metadata(files["README.md"].decode())["library_name"] == "mlx"
    )

    peft = tmp_path / "peft"
    peft.mkdir()
    shutil.copy(adapters / "adapters.safetensors", peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "open/base"}')
    (peft / "mlxmath_export.json").write_text(json.dumps({"adapter": str(adapters / "best")}))
    push(peft, "me/peft", evaluations=[evaluation(tmp_path / "evaluated", adapters)])
    card = hub.models["me/peft"].files["README.md"].decode()
    assert "PeftModel.from_pretrained" in card and metadata(card)["library_name"] == "peft"
    assert "| lora.rank | 8 |" in card and "43.2 %" in card and "loss.png" in hub.models["me/peft"].files
    assert "mlxmath_export.json" not in hub.models["me/peft"].files

    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model-Q8_0.gguf").write_bytes(b"GGUF")
    push(gguf, "me/gguf", run=adapters)
    card = hub.models["me/gguf"].files["README.md"].decode()
    assert "ollama run hf.co/me/gguf" in card and "--hf-file model-Q8_0.gguf" in card
    (gguf / "Modelfile").write_text("FROM ../model-Q8_0.gguf\n")
    with pytest.raises(MlxmathError, match="lies outside"):
        push(gguf, "me/gguf")
    (gguf / "Modelfile").write_text("FROM ./model-Q8_0.gguf\n")
    push(gguf, "me/gguf", run=adapters)
    assert "ollama create gguf -f model/Modelfile" in hub.models["me/gguf"].files["README.md"].decode()


def test_wrong_folders(hub: Hub, adapters: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, expected in ((tmp_path / "none", "is no folder"), (tmp_path / "empty", "holds nothing to push")):
        with pytest.raises(InputError, match=expected):
            push(folder, "me/tuned")
    with pytest.raises(InputError, match=r"--run .*: run.json is not there"):
        contents_of(adapters, tmp_path)
    with pytest.raises(InputError, match="expected the folder of an evaluation"):
        push(adapters, "me/tuned", evaluations=[tmp_path])
    found = evaluation(tmp_path / "evaluated", adapters)
    data = bytearray((adapters / "adapters.safetensors").read_bytes())
    data[-1] ^= 1
    (adapters / "adapters.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="the weights differ"):
        push(adapters, "me/tuned", evaluations=[found])
    (adapters / "adapters.safetensors").write_bytes(data[:100])
    with pytest.raises(MlxmathError, match=r"adapters\.safetensors"):
        push(adapters, "me/tuned")
    (adapters / "adapters.safetensors").write_bytes(data)
    record = unsealed_json(adapters / "run.json", ())
    for damaged, expected in (
        ([], "it is no object"),
        (record | {"data": None}, "data is no object"),
        (record | {"config": {"training": []}}, r"config\.training is no object"),
        (record | {"steps": "many"}, "steps is no number"),
    ):
        (adapters / "run.json").write_text(json.dumps(damaged))
        with pytest.raises(MlxmathError, match=rf"run\.json is damaged: {expected}"):
            push(adapters, "me/tuned")
    assert not any(method == "POST" for method, *_ in hub.requests)


def test_paths() -> None:
    private = ["/root/x/model", "~/m", "C:\\Users\\me\\m", "demo", "a/b", "/", "</s>", "{{ /a/b/c }}"]
    assert without_paths({"a": private}) == {"a": ["model", "m", "m", *private[3:]]}
    assert last_parts("of /srv/data/x.jsonl; 1/2 and 3/4/5, a/b, https://host/a/b") == (
        "of x.jsonl; 1/2 and 3/4/5, a/b, https://host/a/b"
    )


@pytest.mark.slow
def test_the_cards_program_runs(hub: Hub, debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the card of an adapter tells to do, on the folder itself."""
    found = push(debug_run / "adapters", "me/tuned", dry_run=True)
    program = found.card.split("```python\n")[1].split("```")[0]
    program = program.replace('snapshot_download("me/tuned")', repr(str(debug_run / "adapters")))
    program = program.replace('"base"', repr(str(debug_run / "mlx_model"))).replace("max_tokens=400", "max_tokens=60")
    (tmp_path / "program.py").write_text(program)
    told = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    asked = succeed(debug_run, "infer", "--prompt", "What is 12 + 7?", "--max-new-tokens", "60")
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == asked.stdout.strip()
