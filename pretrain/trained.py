"""A trained model in one process, as evaluation and generation use it: config, tokenizer and weights of a run's checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint.format import CheckpointRef, check_same_model
from pretrain.checkpoint.load import CheckpointReader, find_checkpoint, load_weights, read_run_state
from pretrain.config import RunConfig, read_resolved
from pretrain.data.tokenizer import Tokenizer, load_tokenizer
from pretrain.errors import CheckpointError
from pretrain.model.layers import LayerStack, build_layers
from pretrain.model.moe import routers
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh

Tell = Callable[[str], None]


@dataclass(frozen=True)
class TrainedModel:
    """The newest whole checkpoint of a run."""

    config: RunConfig
    tokenizer: Tokenizer
    stack: LayerStack
    """In evaluation mode: no dropout."""
    step: int
    targets: int
    """Valid targets that it was trained on."""


def load_trained(run_dir: Path, tell: Tell, device: torch.device | None = None) -> TrainedModel:
    """Loads a run's model.

    Args:
        run_dir: the run's folder.
        tell: is told about damaged checkpoints that are passed over.
        device: by default a GPU where the run was trained on one and there is one here, else the CPU.

    Raises:
        ConfigError: the folder is not that of a run.
        CheckpointError: there is no checkpoint, none is whole, or it is of another model or tokenizer.
        DataError: the tokenizer is missing or damaged.
    """
    config = read_resolved(run_dir)
    ref = newest_checkpoint(run_dir, tell)
    metadata = read_run_state(ref)
    check_same_model(metadata, config.model.model_dump(mode="json"))
    tokenizer = load_tokenizer(config.data.folder)
    if tokenizer.hash != metadata.state.tokenizer_hash:
        raise CheckpointError(
            f"{ref.path}: the model was trained with another tokenizer than that of data.dir={config.data.dir} (hash "
            f"{metadata.state.tokenizer_hash}, not {tokenizer.hash}); put the original data folder back"
        )
    place = device or torch.device("cuda" if config.train.device == "cuda" and torch.cuda.is_available() else "cpu")
    stack = _filled_stack(config, ref)
    # A CPU may have no fast bf16; a GPU that trained in it has.
    dtype = torch.bfloat16 if place.type == "cuda" and config.train.precision == "bf16" else torch.float32
    stack = stack.to(device=place, dtype=dtype).eval().requires_grad_(False)
    return TrainedModel(config, tokenizer, stack, metadata.step, metadata.state.targets)


def newest_checkpoint(run_dir: Path, tell: Tell) -> CheckpointRef:
    """The newest whole checkpoint of a run. Raises CheckpointError where there is none."""

    def report(ref: CheckpointRef, damage: list[str]) -> None:
        tell(f"the checkpoint of {ref} is damaged, an older one is used: {damage[0]}")

    ref = find_checkpoint(run_dir, ProcessMesh.single(), report)
    if ref is None:
        raise CheckpointError(
            f"{run_dir}: the run has no checkpoint yet; `pretrain train` saves one at its end and every "
            "checkpoint.interval_steps steps"
        )
    return ref


def _filled_stack(config: RunConfig, ref: CheckpointRef) -> LayerStack:
    """The layers with the checkpoint's weights; drawing initial ones is left out."""
    mesh = ProcessMesh.single()
    weights = load_weights(ref)
    with torch.device("meta"):
        stack = LayerStack(build_layers(config.model, ModelMesh.of(mesh), seed=config.run.seed))
    own = {name: parameter.shape for name, parameter in stack.named_parameters()}
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or surplus:
        what = f"has no weight of {missing[0]}" if missing else f"has a weight of {surplus[0]}, which the model has not"
        raise CheckpointError(f"{ref.path} is a checkpoint of another model: it {what}")
    for name, shape in own.items():
        if weights[name].shape != shape:
            raise CheckpointError(
                f"{ref.path} is a checkpoint of another model: {name} has the shape {list(weights[name].shape)} there "
                f"and {list(shape)} in this run"
            )
    stack.load_state_dict(weights, assign=True)
    checkpoint = CheckpointReader(ref)
    for router in routers(stack):
        if router.bias is not None:
            router.bias = checkpoint.whole(("buffer", router.bias_shard.name))
    return stack
