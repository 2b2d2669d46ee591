"""Random models under random layouts: twenty of a seed, as `pretrain parity --random 20` runs them."""

import shlex
from collections.abc import Callable

import pytest

from launch.cli import build_parser
from pretrain.parity.check import Prover
from pretrain.parity.draw import draw
from pretrain.parity.layouts import read_cases
from pretrain.parity.verdict import BOUNDS, describe
from tests.worlds import World

SEED, STEPS = 1, 3


@pytest.fixture(scope="module")
def prover(world: Callable[[int], World]) -> Prover:
    return Prover(steps=STEPS, tolerance="measured", world_of=world)


@pytest.mark.parametrize("number", range(20))
def test_random_case_trains_like_the_reference(number: int, prover: Prover):
    drawn = draw(SEED, number, steps=STEPS)
    prover.forget()
    proof = prover.prove(drawn.case)
    assert proof.word in ("same model", "tie"), "\n".join(
        [drawn.command, proof.story or describe(proof.verdict, proof.bounds)]
    )


@pytest.mark.parametrize("number", range(5))
def test_the_command_of_a_case_repeats_it(number: int):
    drawn = draw(SEED, number, steps=STEPS)
    arguments = build_parser().parse_args(shlex.split(drawn.command)[1:])
    (case,), _ = read_cases(
        arguments.config, arguments.overrides, arguments.layouts, device=arguments.device, steps=arguments.steps
    )
    assert case.config == drawn.case.config


def test_a_draw_is_a_function_of_seed_and_number():
    assert draw(SEED, 7).command == draw(SEED, 7).command
    assert len({draw(SEED, number).command for number in range(10)}) == 10
    assert draw(SEED, 7).command != draw(SEED + 1, 7).command


def test_a_last_bit_of_the_weights_excuses_no_wrong_model(prover: Prover):
    """What a case may be excused with stays near rounding: a wrong all-reduce moves losses by percents."""
    drawn = draw(SEED, 0, steps=STEPS)
    prover.forget()
    moved = prover.with_nudges(drawn.case.config, dict.fromkeys(BOUNDS, 0.0))
    assert all(0 < moved[quantity] <= 20 * BOUNDS[quantity] for quantity in ("loss", "grad_norm", "gradients"))
