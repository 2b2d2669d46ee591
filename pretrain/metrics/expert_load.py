"""Metrics of how a step's tokens were spread over experts. Pure functions of what the engine tells."""

from statistics import fmean

from pretrain.engine.protocol import ExpertLoad


def load_values(load: ExpertLoad) -> dict[str, float]:
    """The busiest expert's load over the mean one, and the share of choices that a capacity dropped, layer by layer.

    `moe/load_max_over_mean` and `moe/dropped_share` are means over layers, `.../worst` the largest, `.../<layer>` one layer's. A
    perfect balance is 1; all tokens at one expert is the number of experts.
    """
    uneven = [max(chosen) * len(chosen) / max(sum(chosen), 1) for chosen in load.chosen]
    dropped = [lost / max(sum(chosen), 1) for chosen, lost in zip(load.chosen, load.dropped, strict=True)]
    values: dict[str, float] = {}
    for name, layers in (("moe/load_max_over_mean", uneven), ("moe/dropped_share", dropped)):
        values |= {name: fmean(layers), f"{name}/worst": max(layers)}
    return values | {f"moe/load_max_over_mean/{layer}": value for layer, value in zip(load.layers, uneven, strict=True)}
