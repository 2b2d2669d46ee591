"""Bytes that a block keeps for backward, by closed forms on the settings: for plans, and to say what recompute saves. No torch.

Korthikanti et al. 2022, Reducing activation recomputation in large transformer models, section 4, counts s b h (34 + 5 a s / h)
bytes for a block of 16-bit values with dropout. The same is found here of GPT-2's block at 16 bits, without its 5 a s / h: the
fused attention keeps no scores. It comes back where attention probabilities are dropped, which no fused kernel does with our
masks. Beyond the paper: other norms and activations, key-value heads, parallel blocks, cross-attention,
experts, 32 bits.

Legend: n tokens of a context rank, m tokens of its stream (m = n / tp where it is split), t tokens that are attended to, D width,
H query heads and G key-value heads of a rank, K width of a head, F inner width of a rank, w bytes of a value.

Counted is what exists between forward and backward, each storage once: of a projection that makes keys and values both, the
whole is there while either is. Not counted: parameters, what the blocks of a stage share (masks, an encoder's output), what
exists within one block's forward or backward alone, and the copies that exchanges over context ranks make. A test holds it
against what lives in memory.
"""

from dataclasses import dataclass
from typing import Literal

from pretrain.model.flops import FeedForwardKind, Stack
from pretrain.model.settings import ModelSettings

Mode = Literal["none", "selective", "full"]

_STATISTIC = 4
"""Bytes of a row's log-sum-exp or root mean square, fp32 whatever the values are."""


@dataclass(frozen=True)
class MicroBatchSize:
    """A micro-batch on one rank."""

    sequences: int
    positions: int
    """Target positions of the context rank: C = sequence_length / (ring x ulysses)."""
    source_positions: int = 0
    """Source positions of the context rank, of an encoder-decoder."""
    context: int = 1
    """Context ranks: ring x ulysses."""
    tp: int = 1
    stream: Literal["whole", "split"] = "whole"
    """Whether tensor ranks split the residual stream (layout.sequence_parallel)."""
    value_bytes: Literal[2, 4] = 2
    """Of bf16 and fp16, or of fp32."""
    rms_norm: Literal["fused", "composite"] = "fused"
    """`fused`: a kernel that keeps its input, as on CUDA. `composite`: torch's on a CPU, which keeps the input and the normed
    input in fp32."""


def block_activation_bytes(
    model: ModelSettings,
    stack: Stack,
    size: MicroBatchSize,
    recompute: Mode = "none",
    feed_forward_tile_tokens: int | None = None,
    feed_forward: FeedForwardKind = "dense",
) -> int:
    """Bytes that one block keeps of a micro-batch; with experts, where no token is padding and each rank gets its share of rows.

    Args:
        model: any model.
        stack: which block; that of an encoder-decoder's decoder cross-attends.
        size: of the micro-batch.
        recompute: as of `train.recompute`.
        feed_forward_tile_tokens: as of `train.feed_forward_tile_tokens`; how many they are does not matter here.
        feed_forward: what the block has.
    """
    own = size.source_positions if stack == "encoder" else size.positions
    block = _Block(model, size, size.sequences * own, recompute, own * size.context)
    if recompute == "full":
        return block.stream * model.d_model * size.value_bytes
    total = block.attention(block.tokens, own * size.context, model.positions == "rotary")
    if feed_forward == "experts":
        total += block.experts()
    elif feed_forward_tile_tokens is None:
        total += block.inner(block.tokens, model.d_ff)
    branches = 2
    if stack == "decoder" and model.architecture == "encoder_decoder":
        memory = size.sequences * size.source_positions
        total += block.attention(memory, size.source_positions * size.context, rotary=False)
        # Each block gathers the memory for itself; a whole one is shared.
        total += memory * model.d_model * size.value_bytes if size.stream == "split" else 0
        branches += 1
    return total + (1 if model.block == "parallel" else branches) * block.around_a_branch()


def logits_bytes(model: ModelSettings, size: MicroBatchSize, loss_tile_tokens: int | None = None) -> int:
    """Bytes of the largest tensor of logits that there is: of a rank's columns, and of a tile's tokens where there are tiles."""
    assert model.vocab_size is not None, "the tokenizer's size is filled in"
    tokens = size.sequences * size.positions
    columns = -(-model.vocab_size // size.tp)
    return min(tokens, loss_tile_tokens or tokens) * columns * size.value_bytes


@dataclass(frozen=True)
class _Block:
    """The terms of a block that is not run again as a whole."""

    model: ModelSettings
    size: MicroBatchSize
    tokens: int
    """n"""
    recompute: Mode
    queries: int
    """Positions of a whole sequence."""

    @property
    def stream(self) -> int:
        """m"""
        return self.tokens // self.size.tp if self.size.stream == "split" else self.tokens

    @property
    def heads(self) -> int:
        """H"""
        return self.model.num_heads // self.size.tp

    def around_a_branch(self) -> int:
        """The norm's input, what entered the branches behind it, and the mask of dropout, a byte a value."""
        model, w = self.model, self.size.value_bytes
        if model.norm == "layernorm":
            norm = self.stream * (model.d_model + 2) * w  # mean and deviation are of the values' type
        else:
            norm = self._rms_norm(self.stream, model.d_model)
        dropped = self.stream * model.d_model if model.dropout > 0 else 0
        return norm + self.tokens * model.d_model * w + dropped

    def inner(self, rows: int, width: int) -> int:
        """Of a feed-forward layer: outputs of the first products, and in mode `none` what the activation made of them."""
        kept = {"relu": 1, "gelu": 1, "gelu_tanh": 1, "swiglu": 2}[self.model.activation]
        if self.recompute == "none":
            kept += {"relu": 0, "gelu": 1, "gelu_tanh": 1, "swiglu": 2}[self.model.activation]
        return kept * rows * width // self.size.tp * self.size.value_bytes

    def experts(self) -> int:
        """A router in fp32; rows in the order of experts, what the experts make of them, and the same in the order of tokens."""
        moe, model, w = self.model.moe, self.model, self.size.value_bytes
        assert moe is not None
        k, rows = moe.experts_per_token, self.tokens * moe.experts_per_token
        router = self.tokens * (
            4 * moe.num_experts + (8 + 4 + 4) * k + 4
        )  # scores, choice, weights before and after their sum
        router += self.tokens * model.d_model * 4 if w < 4 else 0  # the stream in fp32
        total = router + rows * 8 + 3 * rows * model.d_model * w + self.inner(rows, moe.d_ff)
        return total + self.inner(self.tokens, moe.num_shared_experts * moe.d_ff)

    def attention(self, attended: int, keys: int, rotary: bool) -> int:
        """Of t tokens; a query sees up to `keys` of its sequence."""
        model, w, width = self.model, self.size.value_bytes, self.model.width_of_head
        projected, used = self._key_value_heads()
        total = self._normed_heads(attended, used) if model.qk_norm == "head" else 0
        total += self.tokens * width * 4 if rotary else 0  # cosines and sines, fp32
        query = self.tokens * self.heads * width * w
        both = 2 * attended * projected * width * w
        key = attended * used * width * w if rotary or model.qk_norm == "head" else 0
        if self.recompute == "selective":
            return total + query + both + key
        output = query
        if model.attention_dropout > 0:
            # Probabilities in fp32, a byte of mask and the dropped ones for each pair; keys and values for every query head.
            pairs = self.size.sequences * self.heads * (self.tokens // self.size.sequences) * keys
            expanded = 2 * attended * self.heads * width * w
            return total + query + expanded + pairs * (4 + 1 + w) + output
        return total + query + both + key + output + self.tokens * self.heads * _STATISTIC

    def _key_value_heads(self) -> tuple[int, int]:
        """Those whose projection a rank keeps, and those that its queries use (copied where they do not lie evenly)."""
        total, tp = self.model.kv_heads, self.size.tp
        if total % tp == 0:
            return total // tp, total // tp
        one_head_for_all = self.model.num_heads // total % self.heads == 0
        return (total, 1) if one_head_for_all else (self.heads, self.heads)

    def _normed_heads(self, attended: int, key_heads: int) -> int:
        """What the norms of queries and keys keep beside their outputs."""
        width = self.model.width_of_head
        query_rows, key_rows = self.tokens * self.heads, attended * key_heads
        # The keys' input is a part of the projection, which the values keep anyway, unless it is cast.
        cast = self.size.rms_norm == "composite" and self.size.value_bytes < 4
        shared = 0 if cast else key_rows * width * self.size.value_bytes
        return self._rms_norm(query_rows + key_rows, width) - shared

    def _rms_norm(self, rows: int, width: int) -> int:
        """Without its output."""
        if self.size.rms_norm == "composite":
            return rows * (2 * width * 4 + _STATISTIC)
        return rows * (width * self.size.value_bytes + _STATISTIC)
