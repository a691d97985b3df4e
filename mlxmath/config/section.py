"""What the groups of settings have in common."""

import os.path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

DEMO = "demo"
"""The bundled model, and its problems."""

Folder = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values do not change after the run has started."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def parts(value: object, separator: str) -> object:
    """The parts of a text that lists several; a list of parts as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(separator) if part.strip())
    return tuple(value) if isinstance(value, list) else value
