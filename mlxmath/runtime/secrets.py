"""What must not leave the machine: keys and passwords."""

import base64
import os
import re
from collections.abc import Iterator, Mapping
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


def spelt(key: str) -> re.Pattern[str]:
    """Finds a key however it is spelt: in JSON's escapes or a URL's, in base64 or hexadecimal, in pieces."""
    gap = r"(?:\s|\\{1,8}[nrt]|[\"'+,]){0,4}"
    forms = dict.fromkeys((key, key.encode().hex(), *_in_base64(key.encode())))
    return re.compile(
        "|".join(
            gap.join(rf"(?:\\{{0,8}}{re.escape(c)}|\\{{1,8}}u00{ord(c):02x}|%(?:25){{0,4}}{ord(c):02x})" for c in form)
            for form in forms
        ),
        re.IGNORECASE,
    )


def _in_base64(secret: bytes) -> Iterator[str]:
    """What stands in base64 wherever a secret stands in what is encoded: after 0, 1 or 2 bytes of a group of 3."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + secret + bytes(3)).decode()
        core = whole[-(-before * 8 // 6) : (before + len(secret)) * 8 // 6]
        yield from (core, core.replace("+", "-").replace("/", "_"))


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
