"""Pieces as boxes, held against index arithmetic of whole tensors, element by element."""

import random
from math import prod

import pytest
import torch

from pretrain.checkpoint.boxes import Box, Piece, first_gap


def _random_piece(rng: random.Random, shape: tuple[int, ...]) -> Piece:
    starts = tuple(rng.randrange(n) for n in shape)
    lengths = tuple(rng.randint(0, n - start) for n, start in zip(shape, starts, strict=True))
    local = tuple(length + rng.choice((0, 0, 2)) for length in lengths)
    start = rng.randint(0, prod(local))
    return Piece(starts, lengths, local, start, rng.randint(0, prod(local) - start))


def _elements(piece: Piece, shape: tuple[int, ...]) -> dict[tuple[int, ...], int]:
    """Global index to place within the piece, one element at a time."""
    found = {}
    for place in range(piece.start, piece.start + piece.count):
        local = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), piece.local_shape))
        if all(i < n for i, n in zip(local, piece.lengths, strict=True)):
            found[tuple(s + i for s, i in zip(piece.starts, local, strict=True))] = place - piece.start
    return found


def _indices(box: Box) -> set[tuple[int, ...]]:
    grid = torch.cartesian_prod(*(torch.arange(a, b) for a, b in zip(box.starts, box.stops, strict=True)))
    return {tuple(row) for row in grid.view(box.size, len(box.starts)).tolist()}


@pytest.mark.parametrize("shape", [(7,), (4, 6), (3, 4, 5), (2, 3, 2, 3)])
def test_boxes_of_a_piece_are_its_real_elements_each_once(shape: tuple[int, ...]) -> None:
    rng = random.Random(str(shape))
    for _ in range(100):
        piece = _random_piece(rng, shape)
        boxes, expected = piece.boxes(), _elements(piece, shape)
        assert len(boxes) <= 2 * len(shape) - 1
        assert sum(box.size for box in boxes) == len(expected)
        assert set().union(*map(_indices, boxes)) == set(expected)
        for index, place in expected.items():
            assert piece.offset(index) == place


def test_what_two_pieces_share_is_the_same_elements_in_both() -> None:
    rng = random.Random(1)
    shape = (4, 3, 5)
    for _ in range(200):
        one, other = _random_piece(rng, shape), _random_piece(rng, shape)
        common = [box for a in one.boxes() for b in other.boxes() if (box := a.meet(b))]
        shared = set(_elements(one, shape)) & set(_elements(other, shape))
        assert sum(box.size for box in common) == len(shared)
        assert set().union(*map(_indices, common)) == shared


def test_a_scalar_is_one_element() -> None:
    assert Piece((), (), (), 0, 1).boxes() == [Box((), ())]
    assert first_gap((), [Box((), ())]) is None
    assert first_gap((), []) == ()


def test_a_gap_is_found_exactly_where_no_box_is() -> None:
    rng = random.Random(2)
    shape = (4, 5, 3)
    full = 0
    for _ in range(300):
        boxes = [box for _ in range(rng.randint(1, 12)) for box in _random_piece(rng, shape).boxes()]
        if rng.random() < 0.3:
            boxes += [Box((0, 0, 0), (2, 5, 3)), Box((1, 0, 0), (4, 5, 3))]
        held = set().union(*map(_indices, boxes)) if boxes else set()
        gap = first_gap(shape, boxes)
        full += gap is None
        assert (gap is None) == (len(held) == prod(shape))
        assert gap is None or gap not in held
    assert full > 50
