"""DeepSpeed's faults that this engine goes round: each is shown as it is, beside what stands in its place.

A test that shows a fault fails once DeepSpeed has mended it: what goes round it can then go. A guard that is taken out fails the
test beside it, or, where it is a rule, that rule's test in tests/test_rules.py.
"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from pretrain.engine import build
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.world import start_world
from pretrain.errors import ConfigError
from pretrain.parallel.layout import ParallelLayout
from pretrain.rules import check_config
from tests.layouts.cases import CASES, ONE, Setup, micro_batches
from tests.layouts.parity import Recording, Verdict, compare, failed, whole_tensors
from tests.layouts.recording import record, reference_run, start_engine
from tests.worlds import World

CLIP_NORM = 0.03
"""Of every case."""


@pytest.fixture(scope="module")
def two() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture(scope="module")
def judge(two: World) -> Iterator[Callable[[str, Setup, list[Recording]], Verdict]]:
    """Against the reference, over two steps."""
    with World(1) as one:

        def verdict(case_name: str, setup: Setup, recordings: list[Recording]) -> Verdict:
            (plain,) = one.run(record, case_name, ONE, 1)
            (reference,) = one.run(reference_run, case_name, whole_tensors(plain.start))
            config = CASES[case_name].config(setup)
            return compare(recordings, whole_tensors(plain.initial), reference, config.model, config.optimizer)

        yield verdict


# Clipping under ZeRO-0 with a pipeline.


def norm_that_was_clipped_to(zero_stage: int) -> float:
    """DeepSpeed's own clipping under a pipeline of two stages: the norm of what the optimizer steps with."""
    setup, case = Setup(ParallelLayout(pp=2), zero_stage), CASES["gpt3-untied"]

    def with_clipping(*arguments: Any, **more: Any) -> dict[str, Any]:
        return deepspeed_config(*arguments, **{**more, "clip_norm": CLIP_NORM})

    start_world("cpu")
    with patch.object(build, "deepspeed_config", with_clipping):
        engine: Any = start_engine(case.name, setup)
    optimizer, squares = engine._engine.basic_optimizer, torch.zeros(1)
    step = optimizer.step

    def watched(*arguments: Any, **more: Any) -> Any:
        squares.add_(sum(float(p.grad.square().sum()) for g in optimizer.param_groups for p in g["params"]))
        return step(*arguments, **more)

    optimizer.step = watched
    batches = engine._feed(micro_batches(case, 0, setup.layout, 0), torch.ones(()))
    engine._engine.train_batch(data_iter=batches)
    dist.all_reduce(squares)
    return float(squares.sqrt())


def test_deepspeed_clips_wrongly_under_zero_0_with_a_pipeline(two: World) -> None:
    assert two.run(norm_that_was_clipped_to, 0)[0] > 1.05 * CLIP_NORM


def test_zero_1_clips_rightly_with_a_pipeline(two: World) -> None:
    assert two.run(norm_that_was_clipped_to, 1)[0] == pytest.approx(CLIP_NORM, rel=1e-4)


def test_zero_0_with_a_pipeline_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ZeRO-0 clips wrongly under a pipeline"):
        check_config(CASES["gpt3-untied"].config(Setup(ParallelLayout(pp=2), zero_stage=0)))


# `sequence_parallel_size` of DeepSpeed's config.

ULYSSES = Setup(ParallelLayout(ulysses=2))


def record_with_sequence_parallel_size(case_name: str, setup: Setup) -> Recording:
    """A recording with the setting that DeepSpeed has for ranks that share a sequence."""

    def with_size(*arguments: Any, **more: Any) -> dict[str, Any]:
        sizes = {"sequence_parallel_size": setup.layout.ulysses, "data_parallel_size": setup.layout.dp}
        return {**deepspeed_config(*arguments, **more), **sizes}

    start_world("cpu")
    with patch.object(build, "deepspeed_config", with_size):
        return record(case_name, setup, 2)


def test_sequence_parallel_size_is_silently_wrong_and_the_data_axis_right(two: World, judge: Any) -> None:
    ours = judge("gpt3-tied", ULYSSES, two.run(record, "gpt3-tied", ULYSSES, 2))
    with World(2) as apart:  # the setting stays in a module global, and every later engine in these ranks takes it
        recordings = apart.run(record_with_sequence_parallel_size, "gpt3-tied", ULYSSES)
    theirs = judge("gpt3-tied", ULYSSES, recordings)
    assert not failed(ours)
    assert {"grad_norm"} <= failed(theirs)


def test_no_config_has_sequence_parallel_size() -> None:
    for layout in (ULYSSES.layout, ParallelLayout(ulysses=2, ring=2, tp=2)):
        config = CASES["gpt3-tied"].config(Setup(layout))
        assert "sequence_parallel_size" not in deepspeed_config(
            config.train, config.layout, clip_norm=1.0, micro_batches=1
        )


# The module-global mpu.


def plain_engine_after_a_pipeline(guarded: bool) -> str:
    """What comes of a step at pp=1, dp=2 in ranks that had a pipeline before."""
    start_engine("gpt3-untied", Setup(ParallelLayout(pp=2)))
    setup = Setup(ParallelLayout(dp=2))
    guard = "pretrain.engine.sequential.ModelParallelUnit"
    try:
        if guarded:
            engine = start_engine("gpt3-untied", setup)
        else:
            with patch(guard, lambda mesh: None):
                engine = start_engine("gpt3-untied", setup)
        engine.train_step(micro_batches(CASES["gpt3-untied"], 0, setup.layout, engine.mesh.batch.rank))
    except AttributeError as error:
        return str(error)
    return "trained"


def test_a_plain_engine_takes_the_pipelines_groups_unless_it_has_its_own(two: World) -> None:
    assert two.run(plain_engine_after_a_pipeline, True) == ["trained"] * 2
    assert all("get_model_parallel_rank" in told for told in two.run(plain_engine_after_a_pipeline, False))


# Tied weights whose gradients are accumulated in fp32 beside `grad`.

ACCUMULATED = Setup(ParallelLayout(pp=2), more=("train.precision=bf16", "layout.offload=optimizer"))


def record_with_their_tied_gradients(case_name: str, setup: Setup) -> Recording:
    """A recording with DeepSpeed's own sum over the copies of a tied weight."""
    start_world("cpu")
    from deepspeed.runtime.pipe import schedule
    from deepspeed.runtime.pipe.engine import PipelineEngine

    from pretrain.engine.joint_backward import JointBackwardEngine

    theirs = {schedule.ReduceTiedGrads: PipelineEngine._exec_reduce_tied_grads}
    with patch.dict(JointBackwardEngine._INSTRUCTION_MAP, theirs):
        return record(case_name, setup, 2)


def test_deepspeed_leaves_tied_gradients_apart_where_they_are_accumulated_in_fp32(two: World, judge: Any) -> None:
    ours = judge("gpt3-tied", ACCUMULATED, two.run(record, "gpt3-tied", ACCUMULATED, 2))
    theirs = judge("gpt3-tied", ACCUMULATED, two.run(record_with_their_tied_gradients, "gpt3-tied", ACCUMULATED))
    assert ours["gradients"].value < 0.1
    assert theirs["gradients"].value > 0.5
