"""What passes round a ring arrives: from the rank before, in the order in which it was sent."""

import torch

from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.ring import Passing
from tests.worlds import World


def _go_round(size: int) -> list[list[float]]:
    """What a rank sees of two tensors of which each goes round, with a second one behind the first."""
    ring = ProcessMesh.create(ParallelLayout(dp=4 // size, ring=size), torch.device("cpu")).ring
    first, second = torch.tensor([float(ring.rank)]), torch.tensor([10.0 + ring.rank, 0.0])
    seen = []
    for _ in range(size):
        one, two = Passing(first, ring), Passing(second, ring)
        first, second = one.wait(), two.wait()
        seen.append([*first.tolist(), *second.tolist()])
    return seen


def test_tensors_come_from_the_rank_before_and_home_in_the_end(world: World) -> None:
    for size in (2, 4):
        for rank, seen in enumerate(world.run(_go_round, size)):
            origins = [(rank % size - hop - 1) % size for hop in range(size)]
            assert seen == [[float(origin), 10.0 + origin, 0.0] for origin in origins]
