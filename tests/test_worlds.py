import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.worlds import RanksFailed, World, run_ranks


def _rank_and_sum() -> tuple[int, float]:
    value = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(value)
    return dist.get_rank(), value.item()


def _fail_on_rank_1(message: str) -> None:
    if dist.get_rank() == 1:
        raise KeyError(message)
    dist.barrier()


def _die_on_rank_1() -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def _hang_on_rank_0() -> None:
    if dist.get_rank() == 0:
        while True:
            time.sleep(60)


def _alive(process_id: int) -> bool:
    """Whether it runs; an orphan that has ended stays as a zombie until the init process gets to it."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ranks_answer_in_order_and_share_a_process_group():
    assert run_ranks(3, _rank_and_sum) == [(0, 6.0), (1, 6.0), (2, 6.0)]


def test_a_world_keeps_its_ranks_between_calls_and_ends_them_at_close():
    with World(2) as world:
        first = world.run(os.getpid)
        assert world.run(os.getpid) == first == world.process_ids
    assert not any(_alive(process_id) for process_id in first)


def test_an_exception_in_a_rank_reaches_the_test_with_its_traceback():
    with World(2) as world:
        with pytest.raises(RanksFailed, match="rank 1 raised") as caught:
            world.run(_fail_on_rank_1, "the cause")
        assert "_fail_on_rank_1" in str(caught.value)
        assert "the cause" in str(caught.value)
        assert world.run(_rank_and_sum) == [(0, 3.0), (1, 3.0)]


def test_the_death_of_a_rank_is_told_with_its_exit_code():
    with pytest.raises(RanksFailed, match="rank 1 died with exit code 7"):
        run_ranks(2, _die_on_rank_1)


def test_a_hanging_rank_is_told_with_its_stack_and_killed():
    with World(2) as world:
        world.run(_rank_and_sum)  # the ranks know this module now, so that the time is spent in the function
        process_ids = world.process_ids
        with pytest.raises(RanksFailed, match="rank 0 did not answer in time") as caught:
            world.run(_hang_on_rank_0, timeout_s=2.0)
        assert "_hang_on_rank_0" in str(caught.value)
        assert "rank 1 returned" in str(caught.value)
        assert not any(_alive(process_id) for process_id in process_ids)


_HOLD_A_WORLD = """
import os, time
from tests.worlds import World
if __name__ == "__main__":
    print(*World(2).run(os.getpid), flush=True)
    time.sleep(600)
"""


def test_ranks_end_when_their_test_process_is_killed():
    root = Path(__file__).parent.parent
    holder = subprocess.Popen([sys.executable, "-c", _HOLD_A_WORLD], cwd=root, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    process_ids = [int(word) for word in holder.stdout.readline().split()]
    assert len(process_ids) == 2
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(process_id) for process_id in process_ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(process_id) for process_id in process_ids)
