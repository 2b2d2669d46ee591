"""The machine's facts, held against torch, which the launcher does not ask."""

import os

import pytest
import torch

from launch.machine import cpu_flags, this_machine, torch_has_cuda, usable_cores


def test_gpus_are_those_that_torch_sees() -> None:
    machine = this_machine()
    assert machine.gpus == (torch.cuda.device_count() if torch.version.cuda else 0)
    assert torch_has_cuda() == (torch.version.cuda is not None)


def test_cores_are_those_that_this_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= usable_cores() <= len(allowed)


def test_processor_flags_agree_with_torch() -> None:
    flags = cpu_flags()
    if not flags:
        pytest.skip("this system does not list them")
    assert ("avx512f" in flags) >= torch.cpu._is_avx512_supported()
