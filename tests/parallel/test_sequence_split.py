"""Which positions a context rank holds: together all of them, once each, those of an exchange in a row."""

import pytest
import torch

from pretrain.parallel.mesh import Axis
from pretrain.parallel.sequence import SequenceSplit

LENGTH = 48


def _splits(ring: int, ulysses: int) -> list[list[SequenceSplit]]:
    """By ring, then by ulysses coordinate."""

    def axis(name: str, rank: int, size: int) -> Axis:
        return Axis(name, rank, tuple(range(size)), None)  # type: ignore[arg-type]

    return [
        [SequenceSplit(axis("ring", r, ring), axis("ulysses", u, ulysses)) for u in range(ulysses)] for r in range(ring)
    ]


@pytest.mark.parametrize(("ring", "ulysses"), [(1, 1), (1, 3), (2, 1), (4, 1), (2, 2), (3, 4)])
def test_every_position_is_held_by_one_rank_and_an_exchange_sees_them_in_order(ring: int, ulysses: int) -> None:
    seen: list[int] = []
    for group in _splits(ring, ulysses):
        parts = [split.positions(LENGTH) for split in group]
        assert len({len(part) for part in parts}) == 1
        together = torch.cat(parts)
        assert torch.equal(together, group[0].ring_positions(LENGTH)) and bool((together.diff() > 0).all())
        seen += together.tolist()
    assert sorted(seen) == list(range(LENGTH))


def test_a_ring_rank_holds_an_early_and_a_late_chunk() -> None:
    positions = [group[0].positions(16).tolist() for group in _splits(2, 1)]
    assert positions == [[*range(4), *range(12, 16)], [*range(4, 12)]]


def test_a_part_of_a_tensor_is_at_the_positions_of_its_rank() -> None:
    whole = torch.arange(2 * LENGTH * 3).view(2, LENGTH, 3)
    split = _splits(2, 2)[1][1]
    assert torch.equal(split.take(whole), whole[:, split.positions(LENGTH)])
    alone = _splits(1, 1)[0][0]
    assert alone.take(whole) is whole, "no copy where sequences are whole"
