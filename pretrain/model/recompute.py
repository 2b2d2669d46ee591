"""What backward computes again instead of finding it kept (Chen et al. 2016, Training deep nets with sublinear memory cost).

Each place of a block that may be computed again is run by a *runner*, a value that the block is built with: `keep` calls, and
`compute_again` keeps the inputs alone and calls once more in backward, up to the last value that backward needs: of a region
that ends in a matrix product, the product is not run again. Masks of dropout are functions of their place (dropout.py), so no
state of a generator is kept or restored. activation_bytes.py counts what each mode keeps.

`full` runs a block again as a whole. `selective` (Korthikanti et al. 2022, Reducing activation recomputation in large transformer
models, section 5) runs again what is large and cheap: attention between its projections, and the activation within the
feed-forward layer. Tiles bound a feed-forward layer's inner activations by a number of tokens, whatever the sequence: each is
run again in backward by itself (Liu and Abbeel 2023, Blockwise parallel transformer, for the idea).

Not taken: DeepSpeed's checkpointing (its configuration is global), reentrant checkpointing (it detaches integer inputs, and
always runs to the end). Cost: `full`, one more forward, 1/3 of a step's products; `selective`, one more attention core, which is
small while the sequence is short beside the width; tiles, one more forward of the feed-forward layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

Runner = Callable[..., Any]
"""`runner(function, *tensors)` is `function(*tensors)`; what backward has of it differs."""
Mode = Literal["none", "selective", "full"]


def keep(function: Callable[..., Any], *tensors: torch.Tensor) -> Any:
    """All that backward needs is kept."""
    return function(*tensors)


def compute_again(function: Callable[..., Any], *tensors: torch.Tensor) -> Any:
    """The tensors are kept, and the function is called again in backward. It must compute the same and change nothing else."""
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class Tiles:
    """Runs a function of single tokens on some of them at a time; in backward each tile is computed again.

    Autograd adds the weights' gradients of the tiles up in their own type.
    """

    tokens: int
    """Of a tile; the last may be smaller."""

    def __call__(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, D')."""
        tiles = x.flatten(0, 1).split(self.tokens)
        return torch.cat([compute_again(function, tile) for tile in tiles]).unflatten(0, x.shape[:2])


@dataclass(frozen=True)
class Recompute:
    """How each part of a block is run."""

    block: Runner = keep
    """All of it."""
    attention: Runner = keep
    """From queries, keys and values to the output projection."""
    activation: Runner = keep
    """From the outputs of a feed-forward layer's first products to its last."""
    feed_forward: Runner = keep
    """A feed-forward layer as a whole."""

    @staticmethod
    def of(mode: Mode, feed_forward_tile_tokens: int | None = None) -> "Recompute":
        """As the settings say."""
        feed_forward = keep if feed_forward_tile_tokens is None else Tiles(feed_forward_tile_tokens)
        if mode == "full":
            return Recompute(block=compute_again, feed_forward=feed_forward)
        if mode == "selective":
            # A tile is run again as a whole; its activation need not be once more.
            activation = compute_again if feed_forward is keep else keep
            return Recompute(attention=compute_again, activation=activation, feed_forward=feed_forward)
        return Recompute(feed_forward=feed_forward)
