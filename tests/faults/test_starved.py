"""The preparation that a run follows dies: ranks meet it at different steps, and save a checkpoint together."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch.distributed as dist

import pretrain.train
from pretrain.checkpoint.format import CheckpointRef, committed_checkpoints
from pretrain.checkpoint.load import read_run_state
from pretrain.data.batches import Batches
from pretrain.data.follow import Starved
from pretrain.data.micro_batch import MicroBatch
from tests.faults.runs import STEPS, losses, make_data, make_run, register, train_in_rank
from tests.worlds import World

DIED = "Starved: data: preparation has stopped; start it again\nthe run stands at step 3, its checkpoint of step 3 is saved"


class StarvedOnLastRank(Batches):
    """The last rank finds nothing for its fourth step; the others have theirs."""

    def __next__(self) -> list[MicroBatch]:
        if dist.get_rank() == dist.get_world_size() - 1 and self.step == 3:
            raise Starved("data: preparation has stopped; start it again")
        return super().__next__()


def train_starved(run_dir: Path, generation: int) -> str:
    """Runs a rank of a launch whose data end early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.train, "Batches", StarvedOnLastRank)
        return train_in_rank(run_dir, generation)


@pytest.mark.parametrize("layout", [{"pp": 2}, {"pp": 1, "dp": 2}], ids=str)
def test_ranks_save_the_same_step_and_the_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, layout: dict[str, int]
) -> None:
    data = {"manifest": "follow", "order": {"method": "eras", "era_tokens": 160}}
    folder, steps = make_data(tmp_path / "data"), {"interval_steps": 100}
    twin = make_run(tmp_path / "twin", folder, layout=layout, data=data, checkpoint=steps)
    run_dir = make_run(tmp_path / "run", folder, layout=layout, data=data, checkpoint=steps)
    with World(2) as world:
        assert world.run(train_in_rank, twin, register(twin)) == ["finished"] * 2
        ends: Sequence[str] = world.run(train_starved, run_dir, register(run_dir))
        assert ends == [DIED] * 2
        assert [ref.step for ref in committed_checkpoints(run_dir)] == [3]
        assert read_run_state(CheckpointRef.at(run_dir, 3, 1)).state.next_sample == 3 * 4
        assert world.run(train_in_rank, run_dir, register(run_dir)) == ["finished"] * 2
    assert len(losses(run_dir)) == STEPS + 1 and losses(run_dir) == losses(twin)
