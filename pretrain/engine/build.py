"""From a run config and a mesh to an engine."""

from dataclasses import replace

from pretrain.config import RunConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.determinism import set_determinism
from pretrain.engine.plan import EnginePlan
from pretrain.engine.protocol import Engine
from pretrain.model.carry import trace_fields
from pretrain.model.layers import LayerSpec, build_layers, count_parameters, fields_of
from pretrain.model.moe import expert_layers
from pretrain.model.recompute import Recompute
from pretrain.model.vocabulary import LossTiles
from pretrain.optim.optimizers import build_adamw
from pretrain.optim.schedules import build_schedule
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh, SplitStream, WholeStream
from pretrain.parallel.weight_gradients import IMMEDIATE, Deferred, WeightGradients


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

    set_determinism(config.train.determinism)
    plan = plan_engine(config, mesh, total_steps)
    return PipelineEngine(plan, mesh) if mesh.layout.pp > 1 else SequentialEngine(plan, mesh)


def plan_engine(config: RunConfig, mesh: ProcessMesh, total_steps: int) -> EnginePlan:
    """What the engine is built from; no DeepSpeed yet."""
    model, train = config.model, config.train
    assert model.vocab_size is not None
    weight_gradients = Deferred() if config.layout.pipeline_schedule == "zb-h1" else IMMEDIATE
    specs = _layers(config, mesh, weight_gradients)
    sequences_per_rank = config.global_batch_sequences // mesh.layout.dp
    return EnginePlan(
        specs=specs,
        boundaries=trace_fields(fields_of(specs), [(spec.name, spec.flow) for spec in specs]),
        vocab_size=model.vocab_size,
        expert_layers=expert_layers(model),
        num_experts=model.moe.num_experts if model.moe else 0,
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
        weight_gradients=weight_gradients,
        is_traced=lambda step: step % config.logging.interval_steps == 0 or step == total_steps,
    )


def _layers(config: RunConfig, mesh: ProcessMesh, weight_gradients: WeightGradients) -> list[LayerSpec]:
    """The model's layers, as this rank trains them."""
    train, tiles = config.train, None
    if train.loss_tile_tokens is not None:
        tiles = LossTiles(train.loss_tile_tokens, train.loss.label_smoothing)
    recompute = Recompute.of(train.recompute, train.feed_forward_tile_tokens)
    mesh_of_model = _model_mesh(config, mesh, weight_gradients)
    return build_layers(config.model, mesh_of_model, seed=config.run.seed, recompute=recompute, loss_tiles=tiles)


def _model_mesh(config: RunConfig, mesh: ProcessMesh, weight_gradients: WeightGradients) -> ModelMesh:
    """What the layers see of the layout."""
    assert config.layout.sequence_parallel != "auto", "the config is not resolved"
    stream = SplitStream if config.layout.sequence_parallel == "enabled" else WholeStream
    of_model = ModelMesh.of(mesh, stream, weight_gradients)
    if mesh.ulysses.size == 1:
        return of_model
    from pretrain.engine.ulysses import HeadExchange

    return replace(of_model, exchange=HeadExchange(mesh.ulysses))
