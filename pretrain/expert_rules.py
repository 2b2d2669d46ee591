"""Rules of a mixture of experts; rows of the table of `pretrain.rules`, whose preface they share."""

from pretrain.config import RunConfig
from pretrain.model.settings import MoESettings
from pretrain.rule import Rule, divisors, listed


def _moe(config: RunConfig) -> MoESettings:
    assert config.model.moe is not None
    return config.model.moe


def _ep_choices(config: RunConfig) -> str:
    experts = 1 if config.model.moe is None else config.model.moe.num_experts
    return listed(divisors(experts, config.parallel_layout.data_size))


def _shortest_stack(config: RunConfig) -> int:
    model = config.model
    return model.num_layers if model.architecture == "decoder" else min(model.num_layers, model.num_encoder_layers)


def _router_is_untrained(config: RunConfig) -> bool:
    moe = config.model.moe
    if moe is None or moe.num_experts == 1 or moe.experts_per_token > 1 or not moe.normalize_weights:
        return False
    balanced = moe.balance == "auxiliary_loss" and moe.auxiliary_loss > 0
    return not balanced and moe.router_z_loss == 0


MODEL_RULES: tuple[Rule[RunConfig], ...] = (
    Rule(
        "experts_hold_choices",
        lambda c: c.model.moe is not None and c.model.moe.experts_per_token > c.model.moe.num_experts,
        lambda c: (
            f"model.moe.experts_per_token={_moe(c).experts_per_token} must not be above model.moe.num_experts="
            f"{_moe(c).num_experts}: a token goes to different experts; use {_moe(c).num_experts} or fewer"
        ),
    ),
    Rule(
        "one_choice_trains_its_router",
        _router_is_untrained,
        lambda c: (
            "model.moe.experts_per_token=1 with normalize_weights=true makes every expert's weight 1 whatever the router "
            "says, so that the router gets no gradient; set model.moe.normalize_weights=false (Fedus et al. 2021, Switch "
            "Transformer), or give it another loss: balance=auxiliary_loss with auxiliary_loss above 0, or router_z_loss"
        ),
    ),
    Rule(
        "dense_layers_leave_experts",
        lambda c: c.model.moe is not None and c.model.moe.first_dense_layers >= _shortest_stack(c),
        lambda c: (
            f"model.moe.first_dense_layers={_moe(c).first_dense_layers} leaves no block of a stack of {_shortest_stack(c)} its "
            f"experts; use {_shortest_stack(c) - 1} or fewer, or model.moe=null for a dense model"
        ),
    ),
    Rule(
        "tiles_are_of_dense_layers",
        lambda c: c.model.moe is not None and c.train.feed_forward_tile_tokens is not None,
        lambda c: (
            f"train.feed_forward_tile_tokens={c.train.feed_forward_tile_tokens} cuts a micro-batch at any token, but with "
            "model.moe capacity and losses are of whole sequences; set it to null, and train.recompute=full, which keeps no "
            "inner activations of experts either"
        ),
    ),
)
"""Of the model alone, and of what it is trained with."""

LAYOUT_RULES: tuple[Rule[RunConfig], ...] = (
    Rule(
        "tp_divides_experts",
        lambda c: c.model.moe is not None and c.model.moe.d_ff % c.layout.tp != 0,
        lambda c: (
            f"layout.tp={c.layout.tp} must divide model.moe.d_ff={_moe(c).d_ff}: each expert's width is split over "
            f"tensor-parallel ranks; use tp={listed(divisors(c.model.num_heads, c.model.d_ff, _moe(c).d_ff))}"
        ),
    ),
    Rule(
        "ep_needs_experts",
        lambda c: c.layout.ep > 1 and c.model.moe is None,
        lambda c: (
            f"layout.ep={c.layout.ep} spreads experts over ranks, but model.moe=null has none; set layout.ep=1 (those ranks "
            "then only take other samples), or give model.moe"
        ),
    ),
    Rule(
        "ep_divides_experts",
        lambda c: c.model.moe is not None and c.model.moe.num_experts % c.layout.ep != 0,
        lambda c: (
            f"layout.ep={c.layout.ep} must divide model.moe.num_experts={_moe(c).num_experts}: every rank holds equally many; "
            f"use ep={_ep_choices(c)}"
        ),
    ),
    Rule(
        "ep_divides_data_ranks",
        lambda c: c.parallel_layout.data_size % c.layout.ep != 0,
        lambda c: (
            f"layout.ep={c.layout.ep} must divide the {c.parallel_layout.data_size} ranks of the data axis (dp="
            f"{c.parallel_layout.dp} x ring={c.layout.ring} x ulysses={c.layout.ulysses}), among which experts are spread; "
            f"use ep={_ep_choices(c)}"
        ),
    ),
    Rule(
        "ep_needs_zero_below_3",
        lambda c: c.layout.ep > 1 and c.layout.zero_stage == 3,
        lambda c: (
            f"layout.zero_stage=3 cannot run with layout.ep={c.layout.ep}: DeepSpeed partitions every parameter over all data "
            "ranks there, and refuses experts that differ between them (`_validate_zero3_moe_compatibility`, "
            "deepspeed/runtime/engine.py:2215); set layout.ep=1, where zero_stage=3 partitions the experts too, or "
            "layout.zero_stage=2"
        ),
    ),
)
"""Of experts and ranks."""
