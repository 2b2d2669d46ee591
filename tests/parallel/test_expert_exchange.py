import torch

from pretrain.parallel.expert_exchange import take_rows, through_experts
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import Axis, ProcessMesh
from tests.worlds import World

EXPERTS, FEATURES = 8, 3


def _rows(rank: int, counts: list[int]) -> torch.Tensor:
    """(A, 3): each row tells its rank, its expert and its place among that expert's."""
    told = [[rank, expert, place] for expert, count in enumerate(counts) for place in range(count)]
    return torch.tensor(told, dtype=torch.float64).view(-1, FEATURES)


def _counts(rank: int) -> list[int]:
    """Unequal, some zero, one rank without any row."""
    return [0] * EXPERTS if rank == 2 else [(3 * rank + 5 * expert) % 4 for expert in range(EXPERTS)]


def _travel(ep: int) -> tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]:
    mesh = ProcessMesh.create(ParallelLayout(dp=4, ep=ep), torch.device("cpu"))
    counts = _counts(mesh.rank)
    rows = _rows(mesh.rank, counts).requires_grad_()
    first = mesh.expert.rank * EXPERTS // ep
    seen: list[int] = []

    def function(arrived: torch.Tensor, of_each: list[int]) -> torch.Tensor:
        """Multiplies by the expert's number plus one, and checks that the rows are of its experts."""
        own = torch.arange(first, first + EXPERTS // ep).repeat_interleave(torch.tensor(of_each))
        assert torch.equal(arrived.detach()[:, 1].long(), own)
        seen.extend(of_each)
        return arrived * (own.unsqueeze(1) + 1)

    done = through_experts(rows, torch.tensor(counts), mesh.expert, function)  # type: ignore[arg-type]
    (done * torch.arange(1.0, 1.0 + FEATURES)).sum().backward()
    assert rows.grad is not None
    return seen, rows.detach(), done.detach(), rows.grad


def test_rows_meet_their_experts_and_come_back_to_their_places(world: World) -> None:
    for ep in (1, 2, 4):
        for rank, (seen, rows, done, grad) in enumerate(world.run(_travel, ep)):
            factor = rows[:, 1:2] + 1
            assert torch.equal(done, rows * factor)
            assert torch.equal(grad, factor * torch.arange(1.0, 1.0 + FEATURES))
            peers = range(rank // ep * ep, rank // ep * ep + ep)
            first = rank % ep * EXPERTS // ep
            assert seen == [sum(_counts(peer)[e] for peer in peers) for e in range(first, first + EXPERTS // ep)]


def test_taken_rows_give_their_gradients_back_to_what_was_repeated() -> None:
    rows = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([7, 0, 3, 2, 5])  # of 8 repeated rows; three are not taken
    taken = take_rows(rows, order, repeats=2)
    assert torch.equal(taken, rows[order // 2])
    assert torch.autograd.gradcheck(lambda r: take_rows(r, order, 2), (rows,))


def test_an_axis_of_one_asks_nothing_of_others() -> None:
    rows = _rows(0, [2, 1])
    done = through_experts(rows, torch.tensor([2, 1]), Axis.single("expert"), lambda r, counts: r * sum(counts))
    assert torch.equal(done, rows * 3)
