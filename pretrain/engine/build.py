"""From a run config and a mesh to an engine."""

from pretrain.config import RunConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.plan import EnginePlan
from pretrain.engine.protocol import Engine
from pretrain.model.carry import trace_fields
from pretrain.model.layers import build_layers, count_parameters, input_fields
from pretrain.optim.optimizers import build_adamw
from pretrain.optim.schedules import build_schedule
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh, SplitStream, WholeStream


def build_engine(config: RunConfig, mesh: ProcessMesh, total_steps: int) -> Engine:
    """The engine of the layout: pipeline for pp > 1, sequential otherwise. Every rank calls it; `start_world` came before.

    Args:
        config: resolved: no `auto` is left, the vocabulary's size is known.
        mesh: the live mesh of `config.layout`.
        total_steps: length of the schedule.
    """
    # DeepSpeed reads its environment when it is imported, after start_world has set it.
    from pretrain.engine.pipeline import PipelineEngine
    from pretrain.engine.sequential import SequentialEngine

    plan = plan_engine(config, mesh, total_steps)
    return PipelineEngine(plan, mesh) if mesh.layout.pp > 1 else SequentialEngine(plan, mesh)


def plan_engine(config: RunConfig, mesh: ProcessMesh, total_steps: int) -> EnginePlan:
    """What the engine is built from; no DeepSpeed yet."""
    model, train = config.model, config.train
    assert model.vocab_size is not None
    specs = build_layers(model, _model_mesh(config, mesh), seed=config.run.seed)
    sequences_per_rank = config.global_batch_sequences // mesh.layout.dp
    return EnginePlan(
        specs=specs,
        boundaries=trace_fields(input_fields(model), [(spec.name, spec.flow) for spec in specs]),
        vocab_size=model.vocab_size,
        num_parameters=count_parameters(model),
        train=train,
        zero_stage=config.layout.zero_stage,
        clip_norm=config.optimizer.clip_norm,
        deepspeed=deepspeed_config(
            train,
            config.layout,
            clip_norm=config.optimizer.clip_norm if config.layout.zero_stage > 0 else None,
            micro_batches=sequences_per_rank // train.micro_batch_sequences,
        ),
        build_optimizer=lambda parameters: build_adamw(parameters, config.optimizer),
        lr=build_schedule(
            config.schedule, peak_lr=config.optimizer.peak_lr, total_steps=total_steps, d_model=model.d_model
        ),
    )


def _model_mesh(config: RunConfig, mesh: ProcessMesh) -> ModelMesh:
    """What the layers see of the layout."""
    assert config.layout.sequence_parallel != "auto", "the config is not resolved"
    return ModelMesh.of(mesh, SplitStream if config.layout.sequence_parallel == "enabled" else WholeStream)
