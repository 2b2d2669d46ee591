"""The table of rules that lie between fields: each with a name, a predicate and a message.

What one field may hold is said by its type, in its room's settings.py; what two fields mean together is said here and nowhere
else, so that no engine or layer has to check again. A rule is added as one row, and a test of tests/test_rules.py breaks it. The
message names the field, its value, the rule and the nearest way out.

The rows of experts are in `pretrain.expert_rules`, those of the engine in `pretrain.engine_rules`, those of preparation in
`pretrain.prepare_rules`. This table is judged on the config alone; those of `pretrain.site_rules` on the machine, the disk and
the prepared data. Everything is judged before a rank starts and before torch is imported.
"""

import math
from collections.abc import Sequence

from pretrain.config import RunConfig
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.engine_rules import ENGINE_RULES
from pretrain.errors import ConfigError, PretrainError
from pretrain.expert_rules import LAYOUT_RULES, MODEL_RULES
from pretrain.order_rules import ORDER_RULES
from pretrain.prepare_rules import PREPARE_RULES, Preparation
from pretrain.resolve import pipeline_layers, streams_divide
from pretrain.rule import Rule, Subject, divisors, listed

NOAM_SMALLEST_FACTOR = 0.01
"""Below it a peak_lr is a learning rate by its look, not a factor on noam's own."""


def check_config(config: RunConfig) -> None:
    """Judges the config alone; its pp and dp must be resolved. Raises ConfigError with all that does not fit."""
    found = broken_rules(CONFIG_RULES, config)
    if config.data.prepare is not None:
        found += broken_rules(PREPARE_RULES, Preparation(config.data, config.data.prepare))
    raise_all(ConfigError, found)


def check_preparation(config: RunConfig) -> PrepareSettings:
    """Judges what `pretrain prepare` needs of a config. Raises ConfigError."""
    if config.data.prepare is None:
        raise ConfigError(
            f"data.prepare is missing: nothing says how data.dir={config.data.dir} is made; extend a data set, for example "
            "`extends: data/standard_library.yaml`"
        )
    found = broken_rules(ORDER_RULES, config) + broken_rules(
        PREPARE_RULES, Preparation(config.data, config.data.prepare)
    )
    raise_all(ConfigError, found)
    return config.data.prepare


def broken_rules(rules: Sequence[Rule[Subject]], subject: Subject) -> list[str]:
    """The messages of the rules that a subject breaks."""
    return [rule.message(subject) for rule in rules if rule.broken(subject)]


def raise_all(error: type[PretrainError], messages: Sequence[str]) -> None:
    """Raises one error with all messages; nothing where there is none."""
    if messages:
        raise error(
            "\n  ".join(messages if len(messages) == 1 else [f"{len(messages)} settings do not fit:", *messages])
        )


def batch_unit(config: RunConfig) -> int:
    """Tokens by which a global batch grows: one micro-batch on every data-parallel rank."""
    return config.data.sequence_length * config.train.micro_batch_sequences * config.parallel_layout.dp


def context_unit(config: RunConfig) -> int:
    """Positions by which a sequence grows that context ranks share."""
    ring, ulysses = config.layout.ring, config.layout.ulysses
    return ulysses if ring == 1 else ring * math.lcm(2, ulysses)


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` on both sides of a value, as a choice."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def _tp_choices(config: RunConfig) -> str:
    return listed(divisors(config.model.num_heads, config.model.d_ff))


def _zero_reason(stage: int) -> str:
    if stage == 0:
        return "ZeRO-0 clips wrongly under a pipeline (replicated parameters of later stages are left out of the norm)"
    return "a pipeline accumulates gradients over its micro-batches, which ZeRO-2 and 3 would have to scatter each time"


CONFIG_RULES: tuple[Rule[RunConfig], ...] = (
    # The model.
    Rule(
        "heads_divide_width",
        lambda c: c.model.head_dim is None and c.model.d_model % c.model.num_heads != 0,
        lambda c: (
            f"model.num_heads={c.model.num_heads} must divide model.d_model={c.model.d_model} while "
            f"model.head_dim is null; use {listed(divisors(c.model.d_model))} heads, or give model.head_dim"
        ),
    ),
    Rule(
        "kv_heads_divide_heads",
        lambda c: c.model.num_heads % c.model.kv_heads != 0,
        lambda c: (
            f"model.num_kv_heads={c.model.num_kv_heads} must divide model.num_heads={c.model.num_heads}: "
            f"every key-value head serves equally many query heads; use {listed(divisors(c.model.num_heads))}"
        ),
    ),
    Rule(
        "rotary_needs_even_heads",
        lambda c: c.model.positions == "rotary" and c.model.width_of_head % 2 != 0,
        lambda c: (
            f"model.positions=rotary turns pairs of features, so the head width must be even, not "
            f"{c.model.width_of_head}; set model.head_dim={c.model.width_of_head + 1}"
        ),
    ),
    Rule(
        "sinusoids_need_even_width",
        lambda c: c.model.positions == "sinusoidal" and c.model.d_model % 2 != 0,
        lambda c: (
            f"model.positions=sinusoidal takes sine and cosine in pairs, so model.d_model must be even, not "
            f"{c.model.d_model}; use {c.model.d_model + 1}"
        ),
    ),
    Rule(
        "learned_positions_reach",
        lambda c: (
            c.model.positions == "learned"
            and max(c.data.sequence_length, c.data.source_length or 0) > c.model.max_sequence_length
        ),
        lambda c: (
            f"data.sequence_length={c.data.sequence_length} (data.source_length={c.data.source_length}) "
            f"must not be above model.max_sequence_length={c.model.max_sequence_length}: a learned position has a row "
            "of its own; shorten the sequences or raise model.max_sequence_length"
        ),
    ),
    Rule(
        "encoder_has_layers",
        lambda c: c.model.architecture == "encoder_decoder" and c.model.num_encoder_layers == 0,
        lambda c: (
            "model.num_encoder_layers=0, but model.architecture=encoder_decoder reads its source through an encoder; "
            f"set model.num_encoder_layers, for example {c.model.num_layers}"
        ),
    ),
    Rule(
        "decoder_has_no_encoder",
        lambda c: c.model.architecture == "decoder" and c.model.num_encoder_layers > 0,
        lambda c: (
            f"model.num_encoder_layers={c.model.num_encoder_layers}, but model.architecture=decoder has no encoder; "
            "set it to 0, or model.architecture=encoder_decoder"
        ),
    ),
    *MODEL_RULES,
    # The objective.
    Rule(
        "seq2seq_needs_encoder",
        lambda c: c.data.objective == "seq2seq" and c.model.architecture != "encoder_decoder",
        lambda c: (
            f"data.objective=seq2seq needs model.architecture=encoder_decoder, not {c.model.architecture}; "
            "extend a model such as models/transformer-small.yaml, or set data.objective=causal"
        ),
    ),
    Rule(
        "causal_needs_decoder",
        lambda c: c.data.objective == "causal" and c.model.architecture != "decoder",
        lambda c: (
            f"data.objective=causal needs model.architecture=decoder, not {c.model.architecture}; "
            "set data.objective=seq2seq with prepared pairs, or extend a decoder such as models/llama3-laptop.yaml"
        ),
    ),
    Rule(
        "source_length_needed",
        lambda c: c.data.objective == "seq2seq" and c.data.source_length is None,
        lambda c: (
            "data.source_length is null, but data.objective=seq2seq has source sequences; set it, for example to "
            f"data.sequence_length={c.data.sequence_length}"
        ),
    ),
    Rule(
        "source_length_unused",
        lambda c: c.data.objective == "causal" and c.data.source_length is not None,
        lambda c: (
            f"data.source_length={c.data.source_length} has no meaning with data.objective=causal; "
            "set it to null, or data.objective=seq2seq"
        ),
    ),
    # The layout.
    Rule(
        "tp_divides_heads",
        lambda c: c.model.num_heads % c.layout.tp != 0,
        lambda c: (
            f"layout.tp={c.layout.tp} must divide model.num_heads={c.model.num_heads}: heads are split over "
            f"tensor-parallel ranks; use tp={_tp_choices(c)}"
        ),
    ),
    Rule(
        "tp_divides_feed_forward",
        lambda c: c.model.d_ff % c.layout.tp != 0,
        lambda c: (
            f"layout.tp={c.layout.tp} must divide model.d_ff={c.model.d_ff}: the feed-forward width is split "
            f"over tensor-parallel ranks; use tp={_tp_choices(c)}"
        ),
    ),
    Rule(
        "ulysses_divides_heads",
        lambda c: (
            c.layout.ulysses > 1
            and c.model.num_heads % c.layout.tp == 0
            and c.model.num_heads // c.layout.tp % c.layout.ulysses != 0
        ),
        lambda c: (
            f"layout.ulysses={c.layout.ulysses} x layout.tp={c.layout.tp} must divide model.num_heads={c.model.num_heads}: "
            "each rank of an exchange takes equally many whole heads; use ulysses="
            f"{listed(divisors(c.model.num_heads // c.layout.tp))}, or layout.ring={c.layout.ring * c.layout.ulysses} with "
            "ulysses=1, which asks nothing of heads"
        ),
    ),
    Rule(
        "context_divides_sequences",
        lambda c: any(length % context_unit(c) for length in (c.data.sequence_length, c.data.source_length or 0)),
        lambda c: (
            f"data.sequence_length={c.data.sequence_length}"
            + (f" and data.source_length={c.data.source_length}" if c.data.source_length else "")
            + f" must divide by {context_unit(c)}: layout.ring={c.layout.ring} x layout.ulysses={c.layout.ulysses} ranks share a "
            "sequence in equal parts, those of a ring in two chunks each so that causal work is the same; use "
            + nearest_multiples(c.data.sequence_length, context_unit(c))
            + (f" and {nearest_multiples(c.data.source_length, context_unit(c))}" if c.data.source_length else "")
        ),
    ),
    Rule(
        "sequence_parallel_divides_sequences",
        lambda c: c.layout.sequence_parallel == "enabled" and not streams_divide(c),
        lambda c: (
            f"layout.sequence_parallel=enabled splits positions among layout.tp={c.layout.tp} ranks, and data.sequence_length="
            f"{c.data.sequence_length} (data.source_length={c.data.source_length}) must be multiples of "
            f"{c.layout.ring * c.layout.ulysses * c.layout.tp} (ring x ulysses x tp); set layout.sequence_parallel=disabled, "
            f"or use {nearest_multiples(c.data.sequence_length, c.layout.ring * c.layout.ulysses * c.layout.tp)}"
        ),
    ),
    *LAYOUT_RULES,
    Rule(
        "stages_have_layers",
        lambda c: c.parallel_layout.pp > pipeline_layers(c.model),
        lambda c: (
            f"layout.pp={c.parallel_layout.pp} stages, but the model has {pipeline_layers(c.model)} layers with parameters to "
            f"spread (blocks, embeddings, learned positions, norms, head); use pp={pipeline_layers(c.model)} or less"
        ),
    ),
    Rule(
        "pipeline_needs_zero_1",
        lambda c: c.parallel_layout.pp > 1 and c.layout.zero_stage != 1,
        lambda c: (
            f"layout.zero_stage={c.layout.zero_stage} cannot run with layout.pp={c.parallel_layout.pp}: "
            f"{_zero_reason(c.layout.zero_stage)}; set layout.zero_stage=1, or layout.pp=1"
        ),
    ),
    *ENGINE_RULES,
    *ORDER_RULES,
    # The batch and the schedule.
    Rule(
        "batch_divides",
        lambda c: c.train.global_batch_tokens % batch_unit(c) != 0,
        lambda c: (
            f"train.global_batch_tokens={c.train.global_batch_tokens} must be a multiple of data.sequence_length="
            f"{c.data.sequence_length} x train.micro_batch_sequences={c.train.micro_batch_sequences} x dp="
            f"{c.parallel_layout.dp} = {batch_unit(c)}; use "
            f"{nearest_multiples(c.train.global_batch_tokens, batch_unit(c))}"
        ),
    ),
    Rule(
        "warmup_ends",
        lambda c: c.schedule.warmup_steps >= c.train.steps,
        lambda c: (
            f"schedule.warmup_steps={c.schedule.warmup_steps} must be below train.steps={c.train.steps}, or the "
            f"learning rate never reaches its peak; use {c.train.steps // 10}, a tenth of the steps"
        ),
    ),
    Rule(
        "decay_follows_warmup",
        lambda c: (
            c.schedule.decay_steps is not None
            and c.schedule.name in ("cosine", "linear")
            and c.schedule.decay_steps <= c.schedule.warmup_steps
        ),
        lambda c: (
            f"schedule.decay_steps={c.schedule.decay_steps} counts from step 0 and must be above "
            f"schedule.warmup_steps={c.schedule.warmup_steps}; use null for the length of the run"
        ),
    ),
    Rule(
        "noam_needs_warmup",
        lambda c: c.schedule.name == "noam" and c.schedule.warmup_steps == 0,
        lambda c: (
            "schedule.warmup_steps=0, but schedule.name=noam divides by it; the paper uses 4000, a short run about a tenth "
            f"of its steps, here {max(1, c.train.steps // 10)}"
        ),
    ),
    Rule(
        "noam_peak_is_factor",
        lambda c: c.schedule.name == "noam" and c.optimizer.peak_lr < NOAM_SMALLEST_FACTOR,
        lambda c: (
            f"optimizer.peak_lr={c.optimizer.peak_lr} looks like a learning rate, but with schedule.name=noam it is a "
            "factor on the published schedule; set optimizer.peak_lr=1.0"
        ),
    ),
    # Generation.
    Rule(
        "top_p_is_share",
        lambda c: not 0 < c.samples.top_p <= 1,
        lambda c: (
            f"samples.top_p={c.samples.top_p} must be above 0 and at most 1: it is the share of probability that is "
            "kept; use 1.0 to keep all"
        ),
    ),
)
"""Rules of the config alone, in the order in which they are told."""
