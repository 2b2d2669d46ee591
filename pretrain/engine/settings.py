"""The training part of the config: how long, how large a batch, at which precision, on which devices."""

from typing import Literal

from pretrain.settings import Fraction, NonNegativeFloat, PositiveInt, Settings


class LossSettings(Settings):
    """What is minimised beside the cross-entropy."""

    label_smoothing: Fraction = 0.0
    """Szegedy et al. 2016; 0.1 in the 2017 Transformer."""
    z_loss: NonNegativeFloat = 0.0
    """Coefficient of log(Z) squared; 1e-4 in PaLM, section 5."""


class TrainSettings(Settings):
    """The run's length, batch and precision."""

    steps: PositiveInt
    """Attempts of the optimizer."""
    global_batch_tokens: PositiveInt
    """(Target) tokens of one step over all ranks: a multiple of sequence_length x micro_batch_sequences x dp."""
    micro_batch_sequences: PositiveInt
    """Sequences that a rank takes through the model at once."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`bf16`: weights and activations in bf16, gradients accumulated and masters and moments kept in fp32. `auto`: bf16
    where the device multiplies it faster; resolved once at the launch and stored. `fp16`: with a dynamic loss scale, on
    GPUs."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What backward computes again instead of keeping it. `full`: all of a block but its input (Chen et al. 2016). `selective`:
    what is large and cheap, the core of attention and the activation within the feed-forward (Korthikanti et al. 2022, section
    5)."""
    loss_tile_tokens: PositiveInt | None = None
    """Tokens whose logits exist at once: the loss goes through a micro-batch in tiles, so that memory does not grow with
    vocabulary x sequence, for one more product with the vocabulary (a third of the head's work). None: all at once."""
    feed_forward_tile_tokens: PositiveInt | None = None
    """Tokens that are inside a dense feed-forward layer at once; each tile is computed again in backward. None: all at once."""
    determinism: Literal["fastest", "bitwise"] = "fastest"
    """`bitwise`: the same layout gives the same bits on every run, at the price of slower kernels where a device has faster
    ones that do not (CUDA). A CPU is bitwise in either."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is a GPU."""
    loss: LossSettings = LossSettings()
