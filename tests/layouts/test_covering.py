"""What docs/layouts.md allows is run: every pair of features, in the matrix or in a run made for it."""

from collections.abc import Callable

import pytest

from pretrain.parity.check import Prover
from pretrain.parity.layouts import LayoutCase
from pretrain.parity.verdict import describe
from tests.layouts.covering import COVERING, covered_by_matrix, covering_config, pairs_of, wanted_pairs
from tests.worlds import World

STEPS = 3


@pytest.fixture(scope="module")
def prover(world: Callable[[int], World]) -> Prover:
    return Prover(steps=STEPS, tolerance="measured", world_of=world)


def test_every_allowed_pair_of_features_is_run():
    covered = covered_by_matrix().union(*(pairs_of(covering_config(names)) for names in COVERING))
    left = sorted(" with ".join(sorted(pair)) for pair in wanted_pairs() - covered)
    assert not left, "run `python -m tests.layouts.covering` and put its list in"


@pytest.mark.parametrize("names", COVERING, ids=lambda names: "+".join(names).replace(" ", "_"))
def test_covering_run_trains_like_the_reference(names: tuple[str, ...], prover: Prover):
    proof = prover.prove(LayoutCase("+".join(names), covering_config(names)))
    assert proof.passed, proof.story or describe(proof.verdict, proof.bounds)
    assert proof.clipped
