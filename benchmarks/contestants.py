"""The three trainers of `train_step.py`: the engine, the plain loop on the same layers, the plain loop on a minimal GPT."""

from typing import Literal

import torch

from benchmarks.contest import Step
from benchmarks.minimal_gpt import MinimalGPT
from benchmarks.plain_loop import PlainLoop
from pretrain.config import RunConfig
from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.data.settings import DataSettings
from pretrain.engine.build import build_engine
from pretrain.engine.settings import TrainSettings
from pretrain.model.layers import LayerStack, build_layers
from pretrain.model.settings import ModelSettings
from pretrain.optim.settings import ScheduleSettings
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh
from pretrain.parallel.settings import LayoutSettings

Precision = Literal["fp32", "bf16"]


def run_config(
    model: ModelSettings,
    precision: Precision,
    *,
    batch_sequences: int,
    micro_batch_sequences: int,
    device: Literal["cpu", "cuda"] = "cpu",
) -> RunConfig:
    """A run of one process: ZeRO-1, AdamW, clipping at 1, a constant learning rate."""
    sequence_length = model.max_sequence_length
    return RunConfig(
        name="train-step",
        model=model,
        layout=LayoutSettings(tp=1, pp=1, dp=1, sequence_parallel="disabled", zero_stage=1),
        data=DataSettings(dir="unused", sequence_length=sequence_length),
        schedule=ScheduleSettings(name="constant"),
        train=TrainSettings(
            steps=1000,
            global_batch_tokens=batch_sequences * sequence_length,
            micro_batch_sequences=micro_batch_sequences,
            precision=precision,
            device=device,
        ),
    )


def random_batches(config: RunConfig, steps: int) -> list[list[MicroBatch]]:
    """Global batches of random tokens, one document a row, the last position without a target."""
    assert config.model.vocab_size is not None
    rows, length = config.train.micro_batch_sequences, config.data.sequence_length
    draw = torch.Generator().manual_seed(config.run.seed)
    batches = []
    for step in range(steps):
        first = step * config.global_batch_sequences
        batch = []
        for start in range(first, first + config.global_batch_sequences, rows):
            tokens = torch.randint(config.model.vocab_size, (rows, length), generator=draw)
            labels = tokens.roll(-1, 1)
            labels[:, -1] = IGNORED
            inputs = {
                "tokens": tokens,
                "positions": torch.arange(length).repeat(rows, 1),
                "documents": torch.zeros(rows, length, dtype=torch.int64),
                "sample": torch.arange(start, start + rows),
            }
            batch.append(MicroBatch(inputs, labels))
        batches.append(batch)
    return batches


def engine_step(config: RunConfig, device: torch.device) -> Step:
    """The project's engine. `start_world` came before."""
    mesh = ProcessMesh.create(config.parallel_layout, device)
    engine = build_engine(config, mesh, config.train.steps)
    return lambda batch: engine.train_step(batch).loss


def layers_step(config: RunConfig, device: torch.device) -> Step:
    """The plain loop on the same layers with the same initial weights."""
    with device:
        stack = LayerStack(build_layers(config.model, ModelMesh(), seed=config.run.seed))
    loop = PlainLoop(stack, lambda batch: stack(batch.inputs), config.optimizer, _precision(config))
    return lambda batch: loop.step([_moved(part, device) for part in batch])


def minimal_step(config: RunConfig, device: torch.device) -> Step:
    """The plain loop on the minimal GPT of equal shapes, with weights of its own."""
    model = config.model
    assert model.vocab_size is not None
    torch.manual_seed(config.run.seed)
    with device:
        gpt = MinimalGPT(model.vocab_size, model.d_model, model.num_layers, model.num_heads, model.max_sequence_length)
    loop = PlainLoop(gpt, lambda batch: gpt(batch.inputs["tokens"]), config.optimizer, _precision(config))
    return lambda batch: loop.step([_moved(part, device) for part in batch])


def _moved(batch: MicroBatch, device: torch.device) -> MicroBatch:
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
    return MicroBatch(inputs, batch.labels.to(device, non_blocking=True))


def _precision(config: RunConfig) -> Precision:
    assert config.train.precision in ("fp32", "bf16")
    return config.train.precision
