"""The part of the config that says how shards come to a node's own disk."""

from typing import Literal

from pretrain.settings import PositiveFloat, PositiveInt, Settings


class CacheSettings(Settings):
    """A cache of token shards on local disk, filled by one agent a node in the order in which the run will ask for them."""

    dir: str
    """Folder on a disk of the node; each data set has a folder of its own in it."""
    gib: PositiveFloat = 64.0
    """Most that the shards may take there, in GiB; what is not needed soon goes first."""
    lookahead_steps: PositiveInt = 256
    """Steps ahead of the ranks whose shards are fetched, as far as they fit."""
    agent: Literal["auto", "process", "ray"] = "auto"
    """`ray`: an actor on each node of the Ray cluster that RAY_ADDRESS names. `process`: a child of the launcher. `auto`: ray
    where RAY_ADDRESS is set, else a process."""
