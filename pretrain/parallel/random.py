"""Counter-based random streams: every value is a pure function of a key and a global index.

value = f(seed, purpose, global name, global index). A rank draws only the part that it holds, and every layout, stage,
recomputation and resume sees the same weights and the same dropout masks. Nothing is consumed, so there is no state to save.

The generator is SplitMix64 used as a hash of the index (Steele, Lea and Flood 2014, Fast splittable pseudorandom number
generators; the idea of counter-based streams: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3). Torch has no
unsigned 64-bit arithmetic on every device, but int64 products wrap in the same way, so the hash runs on int64. Normal values
are made in float64 and rounded once, so that the last bit of a float32 weight does not hang on how a tensor was sliced.

Not taken: torch.Generator (its stream depends on the order and shape of the draws: each layout would start elsewhere), and
drawing whole tensors to cut them (a 540B model's embedding would have to fit on each rank). Cost: 20 to 30 ns a weight on
one core, once a run; 4 to 5 ns an activation for dropout, half of what torch's takes.
"""

import hashlib
import math
from dataclasses import dataclass

import torch

from pretrain.parallel.shard import Shard

_WEYL = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_CHUNK = 1 << 17
"""Values drawn at once: int64 and float64 temporaries of a chunk stay in the cache."""


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def stream_key(seed: int, purpose: str, name: str) -> int:
    """Key of a stream, a signed 64-bit integer; the separators keep ("a", "bc") apart from ("ab", "c")."""
    text = f"{seed}\0{purpose}\0{name}".encode()
    return _signed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def _shifted_xor_(bits: torch.Tensor, shift: int) -> torch.Tensor:
    # `>>` on int64 copies the sign; the mask makes it a logical shift.
    return bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def hash_bits_(counters: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function on int64 counters, in place; neighbouring counters give unrelated bits."""
    _shifted_xor_(counters.mul_(_signed(_WEYL)), 30)
    _shifted_xor_(counters.mul_(_signed(_MIX_1)), 27)
    return _shifted_xor_(counters.mul_(_signed(_MIX_2)), 31)


@dataclass(frozen=True)
class Constant:
    """Every value is the same: biases, norm weights."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Independent normal values around 0."""

    std: float


@dataclass(frozen=True)
class Uniform:
    """Independent uniform values in [-bound, bound)."""

    bound: float


Distribution = Constant | Normal | Uniform


@torch.no_grad()
def draw_(local: torch.Tensor, shard: Shard, distribution: Distribution, seed: int) -> None:
    """Fills the local part of a parameter; its padding becomes 0. A tensor on the meta device is left alone.

    Args:
        local: the rank's tensor, of at least the shard's size.
        shard: its place in the global parameter; the name keys the stream.
        distribution: of each value.
        seed: of the run.
    """
    if local.is_meta:
        return
    real = shard.real(local)
    if real.shape != local.shape:
        local.zero_()
    if isinstance(distribution, Constant):
        real.fill_(distribution.value)
        return
    assert shard.name, "a parameter is drawn under its global name"
    key = stream_key(seed, "initialization", shard.name)
    rows = real.reshape(-1, real.shape[-1])
    row_starts = _row_offsets(shard, local.device)
    columns = torch.arange(shard.starts[-1], shard.starts[-1] + shard.lengths[-1], device=local.device)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        index = row_starts[start : start + step].unsqueeze(1) + columns
        rows[start : start + step] = _values(key, index, distribution)
    if rows.data_ptr() != real.data_ptr():  # padded along an inner dim: the reshape was a copy
        real.copy_(rows.view(real.shape))


def _row_offsets(shard: Shard, device: torch.device) -> torch.Tensor:
    """(rows,) int64: the global index of the first element of each row that the shard takes part in."""
    offsets = torch.zeros(1, dtype=torch.int64, device=device)
    for dim in range(len(shard.shape) - 1):
        stride = math.prod(shard.shape[dim + 1 :])
        along = torch.arange(shard.starts[dim], shard.starts[dim] + shard.lengths[dim], device=device) * stride
        offsets = (offsets.unsqueeze(1) + along).flatten()
    return offsets


def _values(key: int, index: torch.Tensor, distribution: Normal | Uniform) -> torch.Tensor:
    """float64 values at global indices; two counters an index, so that a normal value has two uniform ones."""
    counters = index.mul_(2).add_(key)
    if isinstance(distribution, Uniform):
        return _unit(hash_bits_(counters)).mul_(2 * distribution.bound).sub_(distribution.bound)
    # Box and Muller 1958; the radius's uniform is moved to (0, 1] for the logarithm.
    angle = _unit(hash_bits_(counters + 1)).mul_(2 * math.pi).cos_()
    radius = _unit(hash_bits_(counters)).neg_().add_(1.0).log_().mul_(-2 * distribution.std**2).sqrt_()
    return radius.mul_(angle)


def _unit(bits: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1) from the upper 53 bits."""
    return (bits >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).mul_(2.0**-53)


_LANES = 4
_LANE_VALUES = 1 << 16


def keep_mask(key: int, rows: torch.Tensor, length: int, rate: float, *, first: int = 0) -> tuple[torch.Tensor, float]:
    """Which values of each row dropout keeps, and the factor that makes up for the others.

    One hash serves four neighbouring values with 16 bits each; the share that is dropped is `rate` rounded to a multiple of
    2**-16, and the factor is the inverse of what is really kept, so the expectation is exact.

    Args:
        key: of the stream.
        rows: (...) int64, a number for each row, the same under every layout.
        length: values of a row that are asked for.
        rate: share to drop, in (0, 1).
        first: the row's value that they start at.

    Returns:
        Mask (..., length) bool, and the factor of the kept values.
    """
    dropped = min(_LANE_VALUES - 1, round(rate * _LANE_VALUES))
    row_keys = hash_bits_(rows + key)
    groups = torch.arange(first // _LANES, -(-(first + length) // _LANES), device=rows.device)
    bits = hash_bits_(row_keys.unsqueeze(-1) + groups)
    lanes = bits.view(torch.int16)[..., first % _LANES : first % _LANES + length]
    return lanes >= dropped - _LANE_VALUES // 2, _LANE_VALUES / (_LANE_VALUES - dropped)
