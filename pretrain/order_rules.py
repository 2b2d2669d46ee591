"""Rules between fields that concern the order of samples: blends, stages, eras, folders that grow.

What a blend means for the sources of the folder that is there is judged with it, in `pretrain.data.plan`.
"""

from collections.abc import Mapping

from pretrain.config import RunConfig
from pretrain.rule import Rule

TOLERANCE = 1e-6
"""By which the sum of weights may miss 1: people write thirds as 0.333333."""


def _blends(c: RunConfig) -> dict[str, Mapping[str, float]]:
    """The blends of a config by the field that holds them."""
    blends: dict[str, Mapping[str, float]] = {
        f"data.order.stages.{at}.weights": stage.weights for at, stage in enumerate(c.data.order.stages)
    }
    return blends if c.data.order.weights is None else {"data.order.weights": c.data.order.weights, **blends}


def _negative(c: RunConfig) -> tuple[str, float] | None:
    found = ((f"{at}.{name}", share) for at, weights in _blends(c).items() for name, share in weights.items())
    return next(((field, share) for field, share in found if not share >= 0), None)


def _wrong_sum(c: RunConfig) -> tuple[str, Mapping[str, float]] | None:
    return next(((at, w) for at, w in _blends(c).items() if not abs(sum(w.values()) - 1) <= TOLERANCE), None)


def _told_sum(c: RunConfig) -> str:
    found = _wrong_sum(c)
    assert found is not None
    field, weights = found
    total = sum(weights.values())
    scaled = ", ".join(f"{name}: {share / total:.6g}" for name, share in weights.items()) if total > 0 else ""
    way_out = f"scaled to 1 they are {{{scaled}}}" if scaled else "give each source its share"
    return f"{field} sum to {total:.6g}, but shares of samples must sum to 1; {way_out}"


def _open_stage(c: RunConfig) -> int | None:
    """The number of a stage without an end that another one follows."""
    stages = c.data.order.stages
    return next((at for at, stage in enumerate(stages[:-1]) if stage.tokens is None), None)


def _short_stage(c: RunConfig) -> int | None:
    """The number of a stage that is shorter than one sequence."""
    lengths = [stage.tokens for stage in c.data.order.stages]
    return next(
        (at for at, tokens in enumerate(lengths) if tokens is not None and tokens < c.data.sequence_length), None
    )


ORDER_RULES: tuple[Rule[RunConfig], ...] = (
    Rule(
        "weights_or_stages",
        lambda c: c.data.order.weights is not None and bool(c.data.order.stages),
        lambda c: (
            f"data.order.weights and data.order.stages ({len(c.data.order.stages)} of them) both say how sources are blended; "
            "set data.order.weights=null, or data.order.stages=[]"
        ),
    ),
    Rule(
        "weights_are_shares",
        lambda c: _negative(c) is not None,
        lambda c: "{}={} is no share of the samples; use a number from 0 to 1, 0 for a source that is left out".format(
            *(_negative(c) or ())
        ),
    ),
    Rule("weights_sum_to_one", lambda c: _negative(c) is None and _wrong_sum(c) is not None, _told_sum),
    Rule(
        "stages_end",
        lambda c: _open_stage(c) is not None,
        lambda c: (
            f"data.order.stages.{_open_stage(c)}.tokens is null, but another stage follows; only the last one goes on to the end "
            "of the run, so give this one its tokens"
        ),
    ),
    Rule(
        "stages_hold_a_sequence",
        lambda c: _short_stage(c) is not None,
        lambda c: (
            f"data.order.stages.{_short_stage(c)}.tokens={c.data.order.stages[_short_stage(c) or 0].tokens} is shorter than one "
            f"sequence of data.sequence_length={c.data.sequence_length}; make the stage longer, or leave it out"
        ),
    ),
    Rule(
        "eras_hold_a_sequence",
        lambda c: c.data.order.method == "eras" and c.data.order.era_tokens < c.data.sequence_length,
        lambda c: (
            f"data.order.era_tokens={c.data.order.era_tokens} must be at least data.sequence_length={c.data.sequence_length}: "
            "windows are shuffled within an era; 1073741824 mixes well and fits on any disk"
        ),
    ),
    Rule(
        "follow_needs_eras",
        lambda c: c.data.manifest == "follow" and c.data.order.method != "eras",
        lambda c: (
            f"data.manifest=follow cannot run with data.order.method={c.data.order.method}, which permutes all windows that "
            "there will be; set data.order.method=eras, or data.manifest=finished"
        ),
    ),
    Rule(
        "follow_needs_windows",
        lambda c: c.data.manifest == "follow" and c.data.objective != "causal",
        lambda c: (
            f"data.manifest=follow cannot run with data.objective={c.data.objective}, whose rows are planned over all pairs; set "
            "data.manifest=finished"
        ),
    ),
    Rule(
        "follow_needs_weights",
        lambda c: (
            c.data.manifest == "follow"
            and c.data.prepare is not None
            and len(c.data.prepare.sources) > 1
            and not _blends(c)
        ),
        lambda c: (
            "data.order.weights is null, but data.manifest=follow starts before it is known how much each source has; give their "
            "shares in data.order.weights"
        ),
    ),
    Rule(
        "cache_reads_windows",
        lambda c: c.data.cache is not None and c.data.objective != "causal",
        lambda c: (
            f"data.cache cannot serve data.objective={c.data.objective}, whose rows are planned over all pairs; set "
            "data.cache=null"
        ),
    ),
    Rule(
        "cache_reads_finished_data",
        lambda c: c.data.cache is not None and c.data.manifest == "follow",
        lambda c: (
            "data.cache and data.manifest=follow do not go together: a run that follows a preparation reads its folder; set "
            "data.cache=null, or data.manifest=finished"
        ),
    ),
)
"""Rules of the order of samples."""
