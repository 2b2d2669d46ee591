from pretrain.engine.protocol import ExpertLoad
from pretrain.metrics.expert_load import load_values


def test_loads_are_told_as_a_mean_the_worst_layer_and_each_layer():
    load = ExpertLoad(("layers.0", "layers.1"), ((10, 10, 10, 10), (40, 0, 0, 0)), (0, 30))
    assert load_values(load) == {
        "moe/load_max_over_mean": 2.5,
        "moe/load_max_over_mean/worst": 4.0,
        "moe/load_max_over_mean/layers.0": 1.0,
        "moe/load_max_over_mean/layers.1": 4.0,
        "moe/dropped_share": 0.375,
        "moe/dropped_share/worst": 0.75,
    }


def test_a_step_of_padding_alone_divides_by_nothing():
    values = load_values(ExpertLoad(("layers.0",), ((0, 0),), (0,)))
    assert set(values.values()) == {0.0}
