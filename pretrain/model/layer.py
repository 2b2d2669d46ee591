"""Layer: the base of everything that stands in a model's list of layers."""

import torch
from torch import nn

from pretrain.model.carry import Carry, Flow


class Layer(nn.Module):
    """A module from carry to carry."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, carry: Carry) -> Carry:
        """A new carry; the given one stays as it is."""
        raise NotImplementedError

    def pass_on(self, carry: Carry, **added: torch.Tensor) -> Carry:
        """The carry behind this layer: what came, less what it drops, with what it adds."""
        return pass_on(carry, self.flow, **added)


def pass_on(carry: Carry, flow: Flow, **added: torch.Tensor) -> Carry:
    """The carry behind a layer of the given flow."""
    kept = {name: tensor for name, tensor in carry.items() if name not in flow.drops}
    return {**kept, **added}
