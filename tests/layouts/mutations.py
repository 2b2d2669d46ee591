"""Seeded faults of our own code, each one line that parallel training gets wrong in practice: the negative control of parity.

A mutation is applied inside the ranks, around one recording. It names the case and layout that should find it, the
quantities that must then fail, and those that must not, so that a mutation cannot pass as found by breaking the run at large.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from pretrain.engine import base, build, objective
from pretrain.engine.world import start_world
from pretrain.model import attention, block, dropout, layers, masks
from pretrain.optim import optimizers
from pretrain.parallel import collectives, embedding, linear
from pretrain.parallel.layout import ParallelLayout
from tests.layouts import context_mutations as of_context
from tests.layouts import expert_mutations as of_experts
from tests.layouts import schedule_mutations as of_schedules
from tests.layouts import stream_mutations as of_streams
from tests.layouts.cases import ONE, Setup
from tests.layouts.parity import Quantity, Recording
from tests.layouts.patching import replaced
from tests.layouts.recording import record

TP2, PP2, DP2 = (Setup(ParallelLayout(**axis)) for axis in ({"tp": 2}, {"pp": 2}, {"dp": 2}))
RING2, ULYSSES2 = (Setup(ParallelLayout(**axis)) for axis in ({"ring": 2}, {"ulysses": 2}))
EP2, PP4 = Setup(ParallelLayout(dp=2, ep=2)), Setup(ParallelLayout(pp=4))
PP4_ZB_H1 = Setup(ParallelLayout(pp=4), more=("layout.pipeline_schedule=zb-h1",))
TP2PP2 = Setup(ParallelLayout(tp=2, pp=2))
"""There the ranks of a tensor group split the stream."""


@dataclass(frozen=True)
class Mutation:
    """A fault and what finds it."""

    apply: Callable[[], AbstractContextManager[Any]]
    case: str
    setup: Setup
    fails: frozenset[Quantity]
    spares: frozenset[Quantity] = frozenset()
    steps: int = 1
    """Of the recording; 1: a fault of the backward pass then leaves the losses right."""


def record_mutated(name: str) -> Recording:
    """A recording with the fault in place; every rank calls it."""
    mutation = MUTATIONS[name]
    start_world("cpu")  # before a mutation imports an engine, and so DeepSpeed
    with mutation.apply():
        return record(mutation.case, mutation.setup, mutation.steps)


def _copy_backward_without_reduce() -> AbstractContextManager[Any]:
    return patch.object(collectives._CopyToAxis, "backward", staticmethod(lambda ctx, grad: (grad, None)))


def _partial_sums_not_summed() -> AbstractContextManager[Any]:
    return patch.object(collectives._ReduceFromAxis, "forward", staticmethod(lambda ctx, tensor, axis: tensor.clone()))


def _every_rank_draws_the_first_shard() -> AbstractContextManager[Any]:
    def change(draw: Any) -> Any:
        return lambda local, shard, *rest: draw(local, replace(shard, starts=(0,) * len(shard.shape)), *rest)

    return replaced(linear, "draw_", change)


def _embedding_looks_one_row_off() -> AbstractContextManager[Any]:
    def change(embed: Any) -> Any:
        def shifted(self: embedding.VocabularyTable, tokens: torch.Tensor) -> torch.Tensor:
            with patch.object(self, "first", self.first + self.axis.rank):
                return embed(self, tokens)

        return shifted

    return replaced(embedding.VocabularyTable, "embed", change)


def _gradient_doubled() -> AbstractContextManager[Any]:
    def change(weigh: Any) -> Any:
        return lambda *arguments: 2 * weigh(*arguments)

    return replaced(base, "micro_batch_weight", change)


def _labels_one_off() -> AbstractContextManager[Any]:
    def change(cross_entropy: Any) -> Any:
        return lambda logits, labels, *rest, **more: cross_entropy(logits, labels.roll(1, 1), *rest, **more)

    return replaced(objective, "vocabulary_parallel_cross_entropy", change)


def _replicas_marked_as_shards() -> AbstractContextManager[Any]:
    def change(set_shard: Any) -> Any:
        def mark(parameter: Any, shard: Any) -> None:
            set_shard(parameter, shard)
            parameter.tensor_model_parallel = True

        return mark

    return replaced(linear, "set_shard", change)


def _no_clipping() -> AbstractContextManager[Any]:
    def change(deepspeed_config: Any) -> Any:
        return lambda *arguments, **more: deepspeed_config(*arguments, **{**more, "clip_norm": None})

    return replaced(build, "deepspeed_config", change)


def _mean_of_micro_batch_means() -> AbstractContextManager[Any]:
    def change(forward: Any) -> Any:
        def weighted(self: Any, logits: Any, labels: torch.Tensor, weight: Any) -> torch.Tensor:
            return forward(self, logits, labels, 1 / (labels != objective.IGNORED).sum().clamp_min(1))

        return weighted

    return replaced(objective.TrainingLoss, "forward", change)


@contextlib.contextmanager
def _tied_gradients_stay_apart() -> Iterator[None]:
    from pretrain.engine.adapters import BalancedPipelineModule

    with patch.object(BalancedPipelineModule, "get_tied_weights_and_groups", lambda self: []):
        yield


def _shared_key_value_gradient_stays_partial() -> AbstractContextManager[Any]:
    return patch.object(attention, "copy_to_axis", lambda tensor, axis: tensor)


def _learning_rate_of_the_next_step() -> AbstractContextManager[Any]:
    def change(build_schedule: Any) -> Any:
        def late(*arguments: Any, **more: Any) -> Callable[[int], float]:
            schedule = build_schedule(*arguments, **more)
            return lambda step: schedule(step + 1)

        return late

    return replaced(build, "build_schedule", change)


def _one_dropout_mask_for_all_layers() -> AbstractContextManager[Any]:
    return replaced(dropout, "stream_key", lambda key: lambda seed, purpose, name: key(seed, purpose, ""))


def _dropout_by_local_head() -> AbstractContextManager[Any]:
    def change(probabilities: Any) -> Any:
        return lambda self, p, sample, first_head: probabilities(self, p, sample, 0)

    return replaced(dropout.HeadDropout, "probabilities", change)


def _bias_on_every_rank() -> AbstractContextManager[Any]:
    return patch.object(linear, "once_over_axis", lambda tensor, axis: tensor)


def _targets_of_the_own_rank() -> AbstractContextManager[Any]:
    return patch.object(base, "count_targets", lambda batches, *_: (sum(batch.targets for batch in batches),))


def _attention_across_documents() -> AbstractContextManager[Any]:
    return patch.object(masks.Masks, "causal", lambda self, documents, dtype: masks.Mask(causal=True))


def _padding_in_the_softmax() -> AbstractContextManager[Any]:
    def change(cross_entropy: Any) -> Any:
        def padded(logits: Any, labels: Any, axis: Any, vocab_size: int, **more: Any) -> Any:
            return cross_entropy(logits, labels, axis, logits.shape[-1] * axis.size, **more)

        return padded

    return replaced(objective, "vocabulary_parallel_cross_entropy", change)


def _decay_for_vectors_too() -> AbstractContextManager[Any]:
    def change(parameter_groups: Any) -> Any:
        def decayed(parameters: Any, weight_decay: float) -> Any:
            groups = parameter_groups(parameters, weight_decay)
            return [{**group, "weight_decay": weight_decay} for group in groups]

        return decayed

    return replaced(optimizers, "parameter_groups", change)


@contextlib.contextmanager
def _source_positions_run_on() -> Iterator[None]:
    def count(documents: torch.Tensor) -> torch.Tensor:
        return torch.arange(documents.shape[1]).expand_as(documents)

    with patch.object(layers, "positions_of", count), patch.object(block, "positions_of", count):
        yield


def _found(*quantities: Quantity) -> frozenset[Quantity]:
    return frozenset(quantities)


_FORWARD = _found("targets", "lr", "loss", "objective")
"""What a fault of the backward pass or of the optimizer leaves right in the first step."""

MUTATIONS = {
    "copy_backward_without_reduce": Mutation(
        _copy_backward_without_reduce, "llama-untied", TP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "partial_sums_not_summed": Mutation(
        _partial_sums_not_summed, "llama-untied", TP2, _found("loss", "gradients"), _found("initial", "targets")
    ),
    "every_rank_draws_the_first_shard": Mutation(
        _every_rank_draws_the_first_shard, "gpt3-untied", TP2, _found("initial", "loss"), _found("targets", "lr")
    ),
    "embedding_looks_one_row_off": Mutation(
        _embedding_looks_one_row_off, "gpt3-tied", TP2, _found("loss", "gradients"), _found("initial", "targets")
    ),
    "gradient_doubled": Mutation(
        _gradient_doubled, "llama-tied", PP2, _found("gradients", "grad_norm"), _FORWARD | _found("parameters")
    ),
    "labels_one_off": Mutation(
        _labels_one_off, "llama-untied", PP2, _found("loss", "objective", "gradients"), _found("initial", "lr")
    ),
    "replicas_counted_twice_in_the_norm": Mutation(
        _replicas_marked_as_shards, "gpt3-tied", TP2, _found("grad_norm"), _FORWARD | _found("gradients")
    ),
    "no_clipping": Mutation(_no_clipping, "gpt3-tied", DP2, _found("gradients"), _FORWARD | _found("grad_norm")),
    "mean_of_micro_batch_means": Mutation(
        _mean_of_micro_batch_means, "llama-untied", PP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "tied_gradients_stay_apart": Mutation(
        _tied_gradients_stay_apart, "transformer-tied", PP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "shared_key_value_gradient_stays_partial": Mutation(
        _shared_key_value_gradient_stays_partial, "palm-tied", TP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "head_norm_gradient_stays_partial": Mutation(
        _shared_key_value_gradient_stays_partial, "qwen3-tied", TP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "whole_gradient_on_every_rank": Mutation(
        of_streams.whole_gradient_on_every_rank, "palm-tied", TP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "shared_weight_gradient_stays_partial": Mutation(
        of_streams.shared_weight_gradient_stays_partial,
        "gpt3-tied",
        Setup(ParallelLayout(tp=2), more=("train.recompute=full", "layout.sequence_parallel=enabled")),
        _found("gradients", "grad_norm"),
        _FORWARD,
    ),
    "scatter_takes_a_slice": Mutation(
        of_streams.scatter_takes_a_slice,
        "llama-untied",
        TP2PP2,
        _found("loss", "gradients"),
        _found("initial", "targets"),
    ),
    "gather_backward_takes_a_slice": Mutation(
        of_streams.gather_backward_takes_a_slice, "llama-untied", TP2PP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "recompute_drops_others": Mutation(
        of_streams.recompute_drops_others,
        "transformer-tied",
        Setup(ParallelLayout(tp=2), more=("train.recompute=full",)),
        _found("gradients", "grad_norm"),
        _FORWARD,
    ),
    "tiles_see_the_own_columns_alone": Mutation(
        of_streams.tiles_see_the_own_columns_alone,
        "palm-untied",
        Setup(ParallelLayout(tp=2), more=("train.loss_tile_tokens=7",)),
        _found("loss", "z_loss", "gradients"),
        _found("initial", "targets"),
    ),
    "ring_hop_skipped": Mutation(
        of_context.ring_hop_skipped, "llama-untied", RING2, _found("loss", "gradients"), _found("initial", "targets")
    ),
    "log_sums_merged_by_the_larger": Mutation(
        of_context.log_sums_merged_by_the_larger,
        "llama-untied",
        RING2,
        _found("loss", "gradients"),
        _found("initial", "targets"),
    ),
    "blind_rows_weigh_one": Mutation(
        of_context.blind_rows_weigh_one,
        "llama-untied",
        RING2,
        _found("loss", "gradients"),
        _found("initial", "targets"),
    ),
    "key_gradients_stay_at_the_last_hop": Mutation(
        of_context.key_gradients_stay_at_the_last_hop, "llama-untied", RING2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "positions_of_a_ring_in_a_row": Mutation(
        of_context.positions_of_a_ring_in_a_row,
        "llama-untied",
        RING2,
        _found("loss", "gradients"),
        _found("initial", "targets"),
    ),
    "deepspeed_shares_sequences_itself": Mutation(
        of_context.deepspeed_shares_sequences_itself,
        "llama-untied",
        ULYSSES2,
        _found("gradients", "grad_norm"),
        _FORWARD,
    ),
    "labels_of_the_first_part": Mutation(
        of_context.labels_of_the_first_part,
        "llama-untied",
        ULYSSES2,
        _found("targets", "loss"),
        _found("initial", "agreement"),
    ),
    "dropout_of_the_other_rank's_heads": Mutation(
        of_context.heads_go_to_the_next_rank,
        "transformer-tied",
        ULYSSES2,
        _found("loss", "gradients"),
        _found("initial", "targets"),
    ),
    "learning_rate_of_the_next_step": Mutation(
        _learning_rate_of_the_next_step,
        "llama-tied",
        ONE,
        _found("lr", "parameters"),
        _found("loss", "grad_norm", "gradients"),
    ),
    "one_dropout_mask_for_all_layers": Mutation(
        _one_dropout_mask_for_all_layers, "transformer-tied", ONE, _found("loss", "gradients"), _found("initial")
    ),
    "dropout_by_local_head": Mutation(
        _dropout_by_local_head, "transformer-tied", TP2, _found("loss", "gradients"), _found("initial")
    ),
    "bias_on_every_rank": Mutation(
        _bias_on_every_rank, "gpt3-untied", TP2, _found("loss", "gradients"), _found("initial")
    ),
    "targets_of_the_own_rank": Mutation(
        _targets_of_the_own_rank, "gpt3-untied", DP2, _found("targets", "agreement", "gradients"), _found("initial")
    ),
    "attention_across_documents": Mutation(
        _attention_across_documents, "llama-untied", ONE, _found("loss", "gradients"), _found("initial")
    ),
    "padding_in_the_softmax": Mutation(
        _padding_in_the_softmax, "palm-untied", TP2, _found("loss", "z_loss", "gradients"), _found("initial")
    ),
    "decay_for_vectors_too": Mutation(
        _decay_for_vectors_too,
        "transformer-untied",
        DP2,
        _found("parameters"),
        _FORWARD | _found("gradients", "grad_norm"),
    ),
    "expert_weights_without_copy": Mutation(
        of_experts.expert_weights_without_copy, "moe-shared", TP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "routers_gradient_on_every_rank": Mutation(
        of_experts.routers_gradient_on_every_rank, "moe-shared", TP2, _found("gradients", "grad_norm"), _FORWARD
    ),
    "auxiliary_loss_on_every_rank": Mutation(
        of_experts.auxiliary_loss_on_every_rank, "moe-transformer", TP2, _found("gradients"), _FORWARD
    ),
    "rows_return_to_the_wrong_place": Mutation(
        of_experts.rows_return_to_the_wrong_place, "moe-shared", EP2, _found("loss", "gradients"), _found("initial")
    ),
    "experts_averaged_over_their_replicas": Mutation(
        of_experts.experts_averaged_over_their_replicas,
        "moe-shared",
        EP2,
        _found("gradients", "grad_norm"),
        _FORWARD,
    ),
    "experts_are_ordinary_parameters": Mutation(
        of_experts.experts_are_ordinary_parameters, "moe-shared", EP2, _found("initial", "loss"), _found("targets")
    ),
    "bias_follows_the_load_of_one_rank": Mutation(
        of_experts.bias_follows_the_load_of_one_rank,
        "moe-bias",
        DP2,
        _found("parameters"),
        _FORWARD | _found("gradients", "grad_norm"),
    ),
    "last_tokens_go_first": Mutation(
        of_experts.last_tokens_go_first, "moe-bias", ONE, _found("loss", "gradients"), _found("initial", "targets")
    ),
    "padding_takes_places": Mutation(
        of_experts.padding_takes_places, "moe-shared", ONE, _found("auxiliary", "gradients"), _found("loss", "initial")
    ),
    "buffers_are_lent_by_index": Mutation(
        of_experts.buffers_are_lent_by_index, "moe-transformer", PP4, _found("gradients", "grad_norm"), _FORWARD
    ),
    "last_weight_pass_forgotten": Mutation(
        of_schedules.last_weight_pass_forgotten, "gpt3-tied", PP4_ZB_H1, _found("gradients", "grad_norm"), _FORWARD
    ),
    "gradients_are_received_into_one_buffer": Mutation(
        of_schedules.gradients_are_received_into_one_buffer, "gpt3-tied", PP4_ZB_H1, _found("gradients"), _FORWARD
    ),
    "source_positions_run_on": Mutation(
        _source_positions_run_on, "transformer-tied", PP2, _found("loss", "gradients"), _found("initial")
    ),
}
"""By name."""
