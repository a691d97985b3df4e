"""How what was pushed is used: commands and programs for its form alone."""

import re
from textwrap import dedent

from mlxmath.sharing.contents import Contents
from mlxmath.sharing.facts import Origin

_QUESTION = "What is 12 + 7?"
_VALUE = re.compile(r"[\w.:/-]{1,100}")
"""Of an option: nothing that a shell or Markdown would take for something of theirs."""


def usage(contents: Contents, repository: str, base: Origin | None) -> str:
    """The section of the card."""
    template = "chat_template.jinja" in contents.files
    base_name = base.option if base else "BASE"
    if contents.kind == "mlx adapter":
        return _mlx_adapter(contents, repository, base_name, base.revision if base else None, template=template)
    return {
        "peft adapter": _peft_adapter, "mlx model": _mlx_model, "transformers model": _transformers_model,
        "gguf": _gguf,
    }[contents.kind](contents, repository, base_name, template)  # fmt: skip


def _python(text: str) -> str:
    return f"```python\n{dedent(text).strip()}\n```"


def _shell(text: str) -> str:
    return f"```\n{dedent(text).strip()}\n```"


def _set_template(folder: str, *, template: bool) -> str:
    """The line that prompts the model as it was trained."""
    return f'\n        tokenizer.chat_template = open({folder} + "/chat_template.jinja").read()' if template else ""


def _mlx_adapter(contents: Contents, repository: str, base: str, revision: str | None, *, template: bool) -> str:
    model = contents.record.get("config", {}).get("model", {})
    bits = model.get("quantize")
    form = {"revision": revision, **{name: model.get(name) for name in ("quantize", "group_size", "dtype")}}
    options = "".join(  # the adapter knows its base by the weights as they are stored
        f" --{name.replace('_', '-')} {value}"
        for name, value in form.items()
        if value not in (None, "auto") and _VALUE.fullmatch(str(value))
    )
    server = ' --chat-template "$(cat adapter/chat_template.jinja)"' if template else ""
    convert = f"mlxmath convert --model {base}{options} --mlx-path base"
    how = " (the adapter was trained on it quantized)" if bits else ""
    return "\n\n".join((
        f"With mlx_lm, on the base that `{convert}` makes{how}:",
        _python(f"""
        from huggingface_hub import snapshot_download
        from mlx_lm import generate, load

        adapter = snapshot_download("{repository}")
        model, tokenizer = load("base", adapter_path=adapter){_set_template("adapter", template=template)}
        question = [{{"role": "user", "content": "{_QUESTION}"}}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
        print(generate(model, tokenizer, prompt, max_tokens=400))
        """),
        "In the shell:",
        _shell(f"""
        {convert}
        hf download {repository} --local-dir adapter
        mlxmath infer --mlx-path base --adapter-path adapter --prompt "{_QUESTION}"
        mlx_lm.server --model base --adapter-path adapter{server}
        """),
    ))  # fmt: skip


def _peft_adapter(_: Contents, repository: str, base: str, template: bool) -> str:
    return "With transformers and PEFT:\n\n" + _python(f"""
        from huggingface_hub import snapshot_download
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        adapter = snapshot_download("{repository}")
        tokenizer = AutoTokenizer.from_pretrained("{base}"){_set_template("adapter", template=template)}
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), adapter)
        question = [{{"role": "user", "content": "{_QUESTION}"}}]
        text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        print(tokenizer.decode(model.generate(**prompt, max_new_tokens=400)[0]))
        """)


def _mlx_model(_: Contents, repository: str, __: str, ___: bool) -> str:
    return "With mlx_lm:\n\n" + _python(f"""
        from mlx_lm import generate, load

        model, tokenizer = load("{repository}")
        question = [{{"role": "user", "content": "{_QUESTION}"}}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
        print(generate(model, tokenizer, prompt, max_tokens=400))
        """)


def _transformers_model(contents: Contents, repository: str, base: str, template: bool) -> str:
    return "With transformers:\n\n" + _python(f"""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained("{repository}")
        model = AutoModelForCausalLM.from_pretrained("{repository}")
        question = [{{"role": "user", "content": "{_QUESTION}"}}]
        text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        print(tokenizer.decode(model.generate(**prompt, max_new_tokens=400)[0]))
        """) + "\n\n" + _mlx_model(contents, repository, base, template)  # fmt: skip


def _gguf(contents: Contents, repository: str, _: str, __: bool) -> str:
    first = next(name for name in contents.files if name.endswith(".gguf"))
    if "Modelfile" in contents.files:
        name = repository.partition("/")[2].lower()
        ollama = f"""
        hf download {repository} --local-dir model
        ollama create {name} -f model/Modelfile
        ollama run {name} "{_QUESTION}"
        """
    else:
        ollama = f"""
        ollama run hf.co/{repository} "{_QUESTION}"
        """
    return "\n\n".join((
        "With Ollama:", _shell(ollama), "With llama.cpp:",
        _shell(f'llama-cli --hf-repo {repository} --hf-file {first} -p "{_QUESTION}"'),
    ))  # fmt: skip
