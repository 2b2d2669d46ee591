"""The smallest GPT that is still the GPT-2 architecture: what the project's layers are measured against.

Pre-norm blocks, one fused query-key-value projection, learned positions, tanh GELU, biases, tied output projection, torch's
fused causal attention, and nothing else: no groups, no masks, no names, no carry.

Legend: B sequences, S positions, D width, H heads, K width of a head, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F


class MinimalBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(d_model)
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, D)."""
        projected = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (B, H, S, K)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh"))


class MinimalGPT(nn.Module):
    """Tokens (B, S) to logits (B, S, V)."""

    def __init__(
        self, vocab_size: int, d_model: int, num_layers: int, num_heads: int, max_sequence_length: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_sequence_length, d_model)
        self.layers = nn.ModuleList(MinimalBlock(d_model, num_heads) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(d_model)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S) to (B, S, V)."""
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.final_norm(x), self.embedding.weight)
