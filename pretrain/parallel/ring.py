"""Tensors on their way round a ring: each rank sends to the next and receives from the one before.

Not taken: all-gather of what goes round (every rank would hold all of it at once). Cost: as many messages as ranks less one,
each under way while the rank computes with what it has.
"""

import torch
import torch.distributed as dist

from pretrain.parallel.mesh import Axis


class Passing:
    """One tensor sent to the next rank of a ring, and its like on the way from the one before.

    Every rank of the ring starts the same passings in the same order. The tensor must not be written to before `wait`.
    """

    def __init__(self, tensor: torch.Tensor, ring: Axis) -> None:
        assert tensor.is_contiguous(), "a message is one run of memory"
        # Both are kept until the end: the sender's memory is read, the receiver's written to, meanwhile.
        self._sent, self._received = tensor, torch.empty_like(tensor)
        after, before = ring.ranks[(ring.rank + 1) % ring.size], ring.ranks[ring.rank - 1]
        self._works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self._sent, after, ring.group),
                dist.P2POp(dist.irecv, self._received, before, ring.group),
            ]
        )

    def wait(self) -> torch.Tensor:
        """What came from the rank before; what was sent may be written to again."""
        for work in self._works:
            work.wait()
        return self._received
