"""The checkpoint part of the config."""

from pretrain.settings import PositiveInt, Settings


class CheckpointSettings(Settings):
    """When to save and how much to keep. The last step is always saved."""

    interval_steps: PositiveInt = 100
    keep: PositiveInt = 2
    """Committed checkpoints that stay; older ones are deleted after a newer one is committed. At least 2 lets a damaged
    one be replaced by the one before."""
