"""FLOPs of a model by closed forms on its settings: for MFU, for the balance of pipeline stages, for plans. No torch.

Convention (Chowdhery et al. 2022, PaLM, appendix B): a multiply-add is 2 FLOPs; backward costs twice the forward; attention
is counted in full, not halved for the causal mask; recomputation is not counted. Training so takes
6 x (parameters - those only looked up) + 12 x layers x heads x head_dim x sequence FLOPs a token. What is looked up is the
input embedding and learned positions; a tied embedding counts once, as the output projection. `num_heads x head_dim` stands
where others write d_model: the two differ in GPT-3 XL.

Alternatives not taken: torch's FlopCounterMode (needs the model on a device, and counts what the kernels do, not what the
mathematics asks); counting parameters of a built model (needs torch, and `pretrain plan` answers without it). A test holds
`num_parameters` here against the layers on the meta device for every family.

Mixture of experts: FLOPs are those of the parameters that a token meets; a capacity that drops tokens is left out of the count.

Encoder-decoder: figures are per target token. The encoder's work, and the keys and values that cross-attention makes of its
memory, are done once a source token and enter with the ratio source_length / sequence_length.
"""

from typing import Literal

from pretrain.model.settings import ModelSettings

Stack = Literal["encoder", "decoder"]
FeedForwardKind = Literal["dense", "experts"]
Count = Literal["all", "active"]
"""Of a mixture of experts: all parameters, or those that a token meets: k routed experts, the shared ones and the router."""


def flops_per_token(model: ModelSettings, sequence_length: int, source_length: int | None = None) -> float:
    """Training FLOPs (forward and backward) per (target) token.

    Args:
        model: with its `vocab_size` filled in.
        sequence_length: (target) tokens of a sequence.
        source_length: source tokens of a sequence of an encoder-decoder; None: as many as target tokens.
    """
    return 3 * forward_flops_per_token(model, sequence_length, source_length)


def forward_flops_per_token(model: ModelSettings, sequence_length: int, source_length: int | None = None) -> float:
    """Forward FLOPs per (target) token; arguments as of `flops_per_token`."""
    source_length = sequence_length if source_length is None else source_length
    total = norm_forward_flops(model) + head_forward_flops(model)
    for kind in feed_forward_kinds(model, "decoder"):
        total += block_forward_flops(model, "decoder", sequence_length, source_length, feed_forward=kind)
    if model.architecture == "encoder_decoder":
        encoder = norm_forward_flops(model)
        for kind in feed_forward_kinds(model, "encoder"):
            encoder += block_forward_flops(model, "encoder", source_length, feed_forward=kind)
        total += encoder * source_length / sequence_length
    return total


def feed_forward_kinds(model: ModelSettings, stack: Stack) -> list[FeedForwardKind]:
    """Of each block of a stack."""
    blocks = model.num_layers if stack == "decoder" else model.num_encoder_layers
    dense = blocks if model.moe is None else min(blocks, model.moe.first_dense_layers)
    return ["dense" if block < dense else "experts" for block in range(blocks)]


def block_forward_flops(
    model: ModelSettings,
    stack: Stack,
    sequence_length: int,
    source_length: int | None = None,
    *,
    feed_forward: FeedForwardKind = "dense",
) -> float:
    """Forward FLOPs of one block per token of its own sequence: 2 a parameter, and attention.

    Args:
        model: any model.
        stack: which block; that of an encoder-decoder's decoder cross-attends.
        sequence_length: tokens that a token attends to in self-attention.
        source_length: tokens that it attends to in cross-attention; None: as many.
        feed_forward: what the block has.
    """
    flops = 2 * block_parameters(model, stack, feed_forward, "active") + _attention_flops(model, sequence_length)
    if stack == "decoder" and model.architecture == "encoder_decoder":
        source_length = sequence_length if source_length is None else source_length
        once_a_source_token = 2 * _key_value_parameters(model)
        flops += once_a_source_token * (source_length / sequence_length - 1)
        flops += _attention_flops(model, source_length)
    return flops


def head_forward_flops(model: ModelSettings) -> float:
    """Forward FLOPs of the output projection per token."""
    return 2 * vocabulary_of(model) * model.d_model


def norm_forward_flops(model: ModelSettings) -> float:
    """Forward FLOPs of a final norm per token, by the convention of 2 a parameter; 0 where there is none (post-norm)."""
    return 2 * _norm_parameters(model) if model.norm_position == "pre" else 0


def num_parameters(model: ModelSettings, count: Count = "all") -> int:
    """Parameters of the model, tied ones once, without padding."""
    vocabulary = vocabulary_of(model) * model.d_model
    positions = model.max_sequence_length * model.d_model if model.positions == "learned" else 0
    final_norm = _norm_parameters(model) if model.norm_position == "pre" else 0
    total = positions + final_norm
    total += sum(block_parameters(model, "decoder", kind, count) for kind in feed_forward_kinds(model, "decoder"))
    total += vocabulary * (1 if model.embeddings == "tied" else 2)
    if model.architecture == "encoder_decoder":
        total += positions + final_norm
        total += sum(block_parameters(model, "encoder", kind, count) for kind in feed_forward_kinds(model, "encoder"))
        total += 0 if model.embeddings == "tied" else vocabulary
    return total


def block_parameters(
    model: ModelSettings, stack: Stack, feed_forward: FeedForwardKind = "dense", count: Count = "all"
) -> int:
    """Parameters of one block of the encoder or the decoder."""
    sublayers = 2
    total = _attention_parameters(model)
    total += _feed_forward_parameters(model) if feed_forward == "dense" else _expert_parameters(model, count)
    if stack == "decoder" and model.architecture == "encoder_decoder":
        sublayers += 1
        total += _attention_parameters(model)
    norms = 1 if model.block == "parallel" else sublayers
    return total + norms * _norm_parameters(model)


def vocabulary_of(model: ModelSettings) -> int:
    """Rows of the embedding. Raises ValueError where the tokenizer has not filled them in."""
    if model.vocab_size is None:
        raise ValueError(
            "model.vocab_size is not known yet: it is the tokenizer's; count once the data is prepared, or set it"
        )
    return model.vocab_size


def _attention_flops(model: ModelSettings, attended: int) -> float:
    """Scores and their sum of values: two products of (head_dim) with (attended) in each head, a token."""
    return 4 * model.num_heads * model.width_of_head * attended


def _attention_parameters(model: ModelSettings) -> int:
    width = model.num_heads * model.width_of_head
    bias = width + model.d_model if "attention" in model.biases else 0
    norms = 2 * model.width_of_head if model.qk_norm == "head" else 0
    return 2 * model.d_model * width + bias + _key_value_parameters(model) + norms


def _key_value_parameters(model: ModelSettings) -> int:
    bias = 1 if "attention" in model.biases else 0
    return 2 * (model.d_model + bias) * model.kv_heads * model.width_of_head


def _feed_forward_parameters(model: ModelSettings, d_ff: int | None = None) -> int:
    inner, d_ff = 2 if model.activation == "swiglu" else 1, d_ff or model.d_ff
    bias = inner * d_ff + model.d_model if "feed_forward" in model.biases else 0
    return (inner + 1) * model.d_model * d_ff + bias


def _expert_parameters(model: ModelSettings, count: Count) -> int:
    moe = model.moe
    assert moe is not None
    routed = moe.num_experts if count == "all" else moe.experts_per_token
    total = moe.num_experts * model.d_model + routed * _feed_forward_parameters(model, moe.d_ff)
    if moe.num_shared_experts:
        total += _feed_forward_parameters(model, moe.num_shared_experts * moe.d_ff)
    return total


def _norm_parameters(model: ModelSettings) -> int:
    vectors = 2 if model.norm == "layernorm" and "norm" in model.biases else 1
    return vectors * model.d_model
