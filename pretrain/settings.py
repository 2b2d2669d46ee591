"""The base of every part of the config: frozen, strict, and closed to unknown keys.

Each folder owns its part in its own `settings.py`; `pretrain.config` composes them. Nothing here imports torch, so that a
mistake in a config is told in well under two seconds.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen part of the config. The docstring under a field is its documentation (unit, default's reason)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True
    )


PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=False, allow_inf_nan=False)]
"""A share in [0, 1): of dropped activations, of smoothed labels, of held-out documents."""
