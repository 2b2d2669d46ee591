"""The dropout of the reference, as `pretrain parity` uses it."""

from pretrain.parity.reference_dropout import counter_dropout

__all__ = ["counter_dropout"]
