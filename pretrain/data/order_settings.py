"""The part of the config that says in which order samples are read, and from which sources."""

from typing import Literal

from pydantic import Field

from pretrain.settings import PositiveFloat, PositiveInt, Settings


class StageSettings(Settings):
    """A blend for a part of the run."""

    tokens: PositiveInt | None = None
    """(Target) tokens, padding included, that the stage lasts; null, for the last stage alone: to the end of the run."""
    weights: dict[str, float]
    """Share of samples by the name of the source; they sum to 1. A source that is not named is left out."""


class OrderSettings(Settings):
    """The order of samples: a function of the position in the run alone."""

    method: Literal["shuffle", "eras"] = "shuffle"
    """`shuffle`: all windows of a source are permuted, anew each epoch. `eras`: a source is read era by era in the order of its
    stream, and permuted within each: what a growing manifest and a cache of shards need."""
    era_tokens: PositiveInt = 1_073_741_824
    """Tokens of an era; 2^30 are 4 GiB of shards or less, so that a cache of few eras fits on any local disk."""
    weights: dict[str, float] | None = None
    """Share of samples by the name of the source; they sum to 1. null: as many as each source has, so that all end together."""
    stages: tuple[StageSettings, ...] = Field(default=(), strict=False)
    """A curriculum: blends one after another, instead of `weights`. A source goes on where the last stage left it."""
    max_epochs: PositiveFloat | None = None
    """Most passes over any source within the run; more are refused before it starts. null: any number, which is told."""
