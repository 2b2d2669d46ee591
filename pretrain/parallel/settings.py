"""The layout part of the config: how many ranks lie along each axis of the grid, and how they share the work."""

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
    """Data-parallel size: ranks that take other samples. `auto`: the ranks that are there, divided by the other axes."""
    ulysses: PositiveInt = 1
    """Ranks that share a sequence and exchange positions for heads around attention (Jacobs et al. 2023). They lie in
    DeepSpeed's data axis, as those of `ring` do."""
    ring: PositiveInt = 1
    """Ranks that share a sequence and pass keys and values round (Liu et al. 2023, Ring attention), with causal work
    balanced."""
    ep: PositiveInt = 1
    """Expert-parallel size: ranks of the data axis (dp x ring x ulysses) among which a layer's experts are spread."""
    sequence_parallel: Literal["auto", "enabled", "disabled"] = "auto"
    """Whether the ranks of a tensor group split the residual stream by positions in norms, dropout and residuals (Korthikanti
    et al. 2022, section 4.2.2); with tp=1 nothing is split either way. `auto`: enabled where tp and pp are both above 1, for
    every tensor rank would send the whole stream to the next stage, and the positions divide; resolved once at the launch,
    stored, and told at the start."""
    pipeline_schedule: Literal["1f1b", "zb-h1"] = "1f1b"
    """Order of a stage's work with pp > 1. `1f1b`: Narayanan et al. 2021. `zb-h1`: backward for inputs and for weights apart,
    the latter into the bubble (Qi et al. 2023, Zero bubble pipeline parallelism, section 2), holding no more micro-batches than
    1f1b (docs/parallelism.md: where it takes more memory all the same)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO stage. With pp > 1 only 1 is right: 0 clips wrongly there, 2 and 3 are refused by DeepSpeed."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """What lies in the host's memory instead of the device's: masters and moments (ZeRO 1 to 3), and the parameters too (ZeRO
    3, so at pp=1)."""
