"""The documented dropout stream, written a second time for the reference, in numpy's unsigned integers.

Whether a value is kept depends on seed, place, sample and position alone. SplitMix64 (Steele, Lea and Flood 2014) hashes the key
of the place with the number of the row; from that, one hash serves four neighbouring values, 16 bits each, low bits first.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from pretrain.parity.reference import Dropout


def counter_dropout(seed: int) -> Dropout:
    """The dropout of a run."""

    def factors(name: str, rate: float, samples: Tensor, shape: tuple[int, ...]) -> Tensor:
        digest = hashlib.blake2b(f"{seed}\0dropout\0{name}".encode(), digest_size=8).digest()
        key = np.frombuffer(digest, dtype="<u8")[0]
        row_numbers = _row_numbers(samples.numpy(), shape)
        with np.errstate(over="ignore"):
            row_keys = _splitmix64(row_numbers + key)
            counters = row_keys[..., None] + np.arange(-(-shape[-1] // 4), dtype=np.uint64)
            bits = _splitmix64(counters)
        lanes = np.stack([(bits >> np.uint64(16 * lane)).astype(np.uint16) for lane in range(4)], axis=-1)
        # Lanes are compared as signed numbers: the lowest `dropped` of them are those from -32768 up.
        ranks = lanes.astype(np.uint16).view(np.int16).astype(np.int64) + 32768
        dropped = round(rate * 65536)
        kept = (ranks >= dropped).reshape(*shape[:-1], -1)[..., : shape[-1]]
        return torch.from_numpy(kept * (65536 / (65536 - dropped)))

    return factors


def _row_numbers(samples: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Of activations (B, S, F) by sample and position; of attention probabilities (B, H, S, T) by head as well."""
    numbers = samples.astype(np.uint64) << np.uint64(32)
    positions = np.arange(shape[-2], dtype=np.uint64)
    if len(shape) == 3:
        return numbers[:, None] + positions
    heads = np.arange(shape[1], dtype=np.uint64) << np.uint64(20)
    return numbers[:, None, None] + heads[:, None] + positions


def _splitmix64(counter: np.ndarray) -> np.ndarray:
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
