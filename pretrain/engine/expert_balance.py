"""Loss-free balancing within an engine: biases of routers, moved after each step by the load of the global batch.

Every rank of a stage holds the biases of all experts of its layers and moves them by the same global loads, so that they stay
equal without a collective of their own. They are state that a checkpoint holds, written by one rank of the stage.
"""

from collections.abc import Iterator

import torch
from torch import nn

from pretrain.engine.protocol import ExpertLoad, Fragment
from pretrain.model.moe import routers
from pretrain.model.router import Router, updated_bias
from pretrain.parallel.mesh import ProcessMesh


class BiasBalance:
    """The balancing biases of this rank's layers; there may be none."""

    def __init__(self, module: nn.Module, mesh: ProcessMesh) -> None:
        self._routers = [router for router in routers(module) if router.bias is not None]
        self._writes = mesh.data.rank == 0 and mesh.model.rank == 0

    def move(self, load: ExpertLoad) -> None:
        """After an update of the parameters."""
        for router in self._routers:
            assert router.bias is not None
            chosen = torch.tensor(load.chosen[load.layers.index(router.layer)], device=router.bias.device)
            router.bias.copy_(updated_bias(router.bias, chosen, router.moe.bias_update_rate))

    def fragments(self) -> Iterator[Fragment]:
        """One for each layer."""
        for router in self._routers:
            yield _fragment(router, self._writes)


def _fragment(router: Router, writes: bool) -> Fragment:
    assert router.bias is not None
    return Fragment("buffer", router.bias_shard, tuple(router.bias.shape), 0, router.bias, writes)
