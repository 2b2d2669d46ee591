"""Every family under tp = 2 and tp = 4 against one rank: weights, logits, gradients of inputs and of parameters."""

from functools import cache

import pytest
import torch
from torch import nn

from pretrain.model.settings import ModelSettings
from pretrain.parallel.cross_entropy import vocabulary_parallel_cross_entropy
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh, SplitStream, Stream, WholeStream
from pretrain.parallel.shard import shard_of
from tests.model.small_models import FAMILIES, SINGLE, build, random_inputs, random_labels, settings
from tests.worlds import World

_BOUND = 2e-5


@cache
def _mesh(tp: int, stream: type[Stream] = WholeStream) -> ModelMesh:
    return ModelMesh.of(ProcessMesh.create(ParallelLayout(dp=4 // tp, tp=tp), torch.device("cpu")), stream)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))


def _run(model: ModelSettings, mesh: ModelMesh) -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """The model after a backward, its logits, and the gradients of what passed between its layers."""
    stack = build(model, mesh)
    streams: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, given: object, carry: dict[str, torch.Tensor]) -> None:
            if "hidden" in carry:
                carry["hidden"].retain_grad()
                streams[name] = carry["hidden"]

        return hook

    for name, module in stack.named_modules():
        if name.endswith(("positions", "layers.0", "layers.1")) and list(module.named_children()):
            module.register_forward_hook(keep(name))
    inputs = random_inputs(model)
    logits = stack(inputs)
    losses = vocabulary_parallel_cross_entropy(
        logits, random_labels(model, inputs), mesh.model, model.vocab_size or 0, 0.1
    )
    (losses.objective + 1e-2 * losses.log_z**2).sum().backward()
    gradients = {name: stream.grad for name, stream in streams.items() if stream.grad is not None}
    assert len(gradients) == len(streams) >= 3
    return stack, logits, gradients


def _differences(family: str, tp: int, stream: type[Stream]) -> dict[str, float]:
    model, mesh = settings(family), _mesh(tp, stream)
    whole, whole_logits, whole_gradients = _run(model, SINGLE)
    split, split_logits, split_gradients = _run(model, mesh)
    first = split_logits.shape[-1] * mesh.model.rank
    real = shard_of(next(iter(split.parameters()))).lengths[0]
    found = {"logits": _difference(split_logits[..., :real], whole_logits[..., first : first + real])}
    for name, gradient in whole_gradients.items():
        found[f"gradient behind {name}"] = _difference(split_gradients[name], mesh.stream.take(gradient))
    parameters = dict(split.named_parameters())
    assert list(parameters) == [name for name, _ in whole.named_parameters()]
    for name, parameter in whole.named_parameters():
        part, shard = parameters[name], shard_of(parameters[name])
        assert shard.name == name
        assert torch.equal(shard.real(part), shard.of(parameter)), f"{name} starts elsewhere under tp = {tp}"
        assert part.grad is not None and parameter.grad is not None, name
        # A key's bias has a gradient of zero in mathematics; the floor keeps its noise from counting.
        scale = float(parameter.grad.abs().max().clamp_min(1e-3))
        error = (shard.real(part.grad) - shard.of(parameter.grad)).abs().max()
        found[f"gradient of {name}"] = float(error) / scale
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tp", "stream"), [(2, WholeStream), (4, WholeStream), (2, SplitStream)])
def test_a_model_is_the_same_under_tensor_parallelism(world: World, family: str, tp: int, stream: type[Stream]) -> None:
    for rank, found in enumerate(world.run(_differences, family, tp, stream)):
        worst = max(found, key=lambda name: found[name])
        assert found[worst] < _BOUND, f"rank {rank}: {worst} is off by {found[worst]:.2e}"


def test_a_split_stream_of_one_rank_is_the_whole_one() -> None:
    model, alone = settings("gpt with dropout"), ProcessMesh.single()
    inputs = random_inputs(model)
    whole, split = (build(model, ModelMesh.of(alone, stream))(inputs) for stream in (WholeStream, SplitStream))
    assert torch.equal(split, whole)


def _replicated_gradients(family: str) -> dict[str, list[float]]:
    stack, _, _ = _run(settings(family), _mesh(2))
    return {
        name: parameter.grad.flatten().tolist()
        for name, parameter in stack.named_parameters()
        if not hasattr(parameter, "tensor_model_parallel") and parameter.grad is not None
    }


@pytest.mark.parametrize("family", ["palm", "transformer", "multi-query with normed heads"])
def test_gradients_of_replicated_parameters_are_bit_equal_on_all_ranks(world: World, family: str) -> None:
    first, *others = world.run(_replicated_gradients, family)
    assert any("norm" in name for name in first)
    assert family != "palm" or "layers.0.attention.key_value.weight" in first
    assert all(other == first for other in others)
