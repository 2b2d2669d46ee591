"""Worlds of gloo ranks for tests; `pretrain parity` runs in the same."""

from pretrain.parity.ranks import RanksFailed, World, run_ranks

__all__ = ["RanksFailed", "World", "run_ranks"]
