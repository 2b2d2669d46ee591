"""The layout part of the config: how many ranks lie along each axis of the grid."""

from typing import Literal

from pretrain.settings import PositiveInt, Settings


class LayoutSettings(Settings):
    """A grid of ranks. Axis order is pipe, data, model, with model innermost (neighbouring ranks share a tensor group)."""

    tp: PositiveInt = 1
    """Tensor-parallel size: ranks among which heads, feed-forward and vocabulary are split."""
    pp: PositiveInt | Literal["auto"] = 1
    """Pipeline-parallel size: stages into which the layers are split. `auto`: 2 where two ranks can run, else 1; resolved
    once at the launch and stored."""
    dp: PositiveInt | Literal["auto"] = "auto"
    """Data-parallel size. `auto`: the ranks that are there, divided by tp x pp."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO stage. With pp > 1 only 1 is right: 0 clips wrongly there, 2 and 3 are refused by DeepSpeed."""
