"""The base of every part of the config: frozen, strict, and closed to unknown keys.

Each folder owns its part in its own `settings.py`; `pretrain.config` composes them. Nothing here imports torch, so that a
mistake in a config is told in well under two seconds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Settings(BaseModel):
    """A frozen part of the config. The docstring under a field is its documentation (unit, default's reason)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True
    )


@dataclass(frozen=True)
class Allowed:
    """An allow-list for a text, as `Annotated[str, Allowed(...)]`; for the names of a mapping too."""

    pattern: str
    """A regular expression; all of the text must match."""
    words: str
    """What it says, for messages, after the word `text`."""

    def __call__(self, text: str) -> str:
        """The text. Raises ValueError where it is not allowed."""
        if not self.allows(text):
            raise ValueError(f"must be text {self.words}, not {text!r}")
        return text

    def allows(self, text: str) -> bool:
        """Whether all of a text matches."""
        return re.fullmatch(self.pattern, text) is not None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic checks a field of it."""
        return core_schema.no_info_after_validator_function(self, handler(source))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of a tree of settings, each with its dotted path."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def is_under(path: str, names: Iterable[str]) -> bool:
    """Whether a dotted path is one of the names, or lies in a section of that name."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=False, allow_inf_nan=False)]
"""A share in [0, 1): of dropped activations, of smoothed labels, of held-out documents."""
