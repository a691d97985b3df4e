"""What must not leave the machine: keys and passwords."""

import os
import re
from collections.abc import Mapping
from typing import Any

from mlxmath.config.section import without_passwords

HIDDEN = "[hidden]"
_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|wandb_v1_\w{16,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""As Hugging Face, OpenAI and its like, GitHub, Slack, Amazon, Google and Weights & Biases make them."""
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
_SHORTEST = 12
"""Characters of a variable's value that is taken for a secret by its name; shorter ones occur in other texts."""


def own_secrets(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The values of environment variables that are secret by their names."""
    return [
        value for name, value in environment.items() if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST
    ]


def has_secret(text: str, also: tuple[str, ...] = ()) -> bool:
    """Whether a key stands in a text: one of `also`, of the environment, or one by its form."""
    return bool(_KEYS.search(text)) or any(secret in text for secret in (*also, *own_secrets()))


def hidden(text: str) -> str:
    """A text without keys and passwords."""
    for secret in own_secrets():
        text = text.replace(secret, HIDDEN)
    return without_passwords(_KEYS.sub(HIDDEN, text))


def without_secrets(value: Any) -> Any:
    """A JSON value whose texts hold neither keys nor passwords."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, dict):
        return {name: without_secrets(inner) for name, inner in value.items()}
    return [without_secrets(inner) for inner in value] if isinstance(value, list | tuple) else value
