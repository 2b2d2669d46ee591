"""Small models of every family, inputs for them, and a model whose vectors are not all ones and zeros."""

from typing import Any

import torch

from pretrain.model.layers import LayerStack, build_layers
from pretrain.model.settings import ModelSettings
from pretrain.parallel.random import Normal, draw_
from pretrain.parallel.sequence import ModelMesh
from pretrain.parallel.shard import shard_of

SINGLE = ModelMesh()
VOCABULARY = 37
LENGTH = 12

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 4,
    "d_ff": 48,
    "max_sequence_length": 16,
    # Ten times the usual weights: what one position does to another must stand out from rounding.
    "initialization": {"std": 0.2, "residual_scale": "none"},
}
_LLAMA = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "biases": (), "embeddings": "untied"}
_ENCODER_DECODER = {"architecture": "encoder_decoder", "num_encoder_layers": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt with dropout": {"dropout": 0.2, "attention_dropout": 0.2},
    "palm": {
        "block": "parallel",
        "num_kv_heads": 1,
        "head_dim": 12,
        "positions": "rotary",
        "activation": "swiglu",
        "biases": (),
        "logit_scale": "rsqrt_d_model",
    },
    "llama": {**_LLAMA, "num_kv_heads": 2},
    "qwen": {**_LLAMA, "num_kv_heads": 2, "qk_norm": "head"},
    "multi-query with normed heads": {"num_kv_heads": 1, "qk_norm": "head", "norm_epsilon": 1e-2},
    "key-value heads that straddle ranks": {
        **_LLAMA,
        "num_heads": 12,
        "num_kv_heads": 3,
        "head_dim": 4,
        "qk_norm": "head",
    },
    "key-value heads and dropout": {**_LLAMA, "num_kv_heads": 2, "attention_dropout": 0.3, "dropout": 0.1},
    "transformer": {
        **_ENCODER_DECODER,
        "norm_position": "post",
        "positions": "sinusoidal",
        "activation": "relu",
        "embedding_scale": "sqrt_d_model",
        "biases": ("feed_forward", "norm"),
        "initialization": {"scheme": "xavier_uniform", "residual_scale": "none", "embedding_std": 0.2},
    },
    "untied encoder-decoder with dropout": {**_ENCODER_DECODER, **_LLAMA, "num_kv_heads": 2, "dropout": 0.1},
    "parallel encoder-decoder": {
        **_ENCODER_DECODER,
        "block": "parallel",
        "num_kv_heads": 1,
        "activation": "gelu",
        "qk_norm": "head",
    },
    "parallel post-norm": {"block": "parallel", "norm_position": "post", "positions": "none"},
}


def settings(family: str = "gpt", **changes: Any) -> ModelSettings:
    """The settings of a family, with changes."""
    return ModelSettings(**{**_BASE, **FAMILIES[family], **changes})


def build(model: ModelSettings, mesh: ModelMesh = SINGLE, seed: int = 7, **more: Any) -> LayerStack:
    """The model with vectors (biases, norm weights) moved off their first values, where a fault would not show.

    `more` are further arguments of `build_layers`.
    """
    stack = LayerStack(build_layers(model, mesh, seed=seed, **more))
    for name, parameter in stack.named_parameters():
        if parameter.dim() == 1:
            shift = torch.zeros_like(parameter)
            draw_(shift, shard_of(parameter).named(f"{name} moved"), Normal(0.3), seed)
            parameter.data += shift
    return stack


def random_inputs(model: ModelSettings, batch: int = 3, length: int = LENGTH, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every field of a batch: windows of one, two and three documents, the last one padded."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, length)
    vocabulary = model.vocab_size or 0
    documents = torch.zeros(size, dtype=torch.long)
    documents[1:, 5:] = 1
    documents[2:, 8:] = 2
    documents[2:, 10:] = -1
    return {
        "tokens": torch.randint(0, vocabulary, size, generator=generator),
        "positions": positions_in(documents),
        "documents": documents,
        "sample": torch.arange(100, 100 + batch),
        "source_tokens": torch.randint(0, vocabulary, (batch, length + 2), generator=generator),
        "source_documents": torch.cat((documents[:, :1], documents, documents[:, -1:]), 1),
    }


def random_labels(model: ModelSettings, inputs: dict[str, torch.Tensor], seed: int = 1) -> torch.Tensor:
    """Labels of a batch; padding is ignored, and so is the first row's second position."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, model.vocab_size or 0, inputs["tokens"].shape, generator=generator)
    labels[inputs["documents"] < 0] = -100
    labels[0, 1] = -100
    return labels


def positions_in(documents: torch.Tensor) -> torch.Tensor:
    """Positions that restart with each document, counted one by one."""
    positions = torch.zeros_like(documents)
    for row in range(documents.shape[0]):
        for column in range(1, documents.shape[1]):
            if documents[row, column] == documents[row, column - 1]:
                positions[row, column] = positions[row, column - 1] + 1
    return positions
