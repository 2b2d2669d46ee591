import math

import pytest
import torch
from torch.nn import functional as F

from pretrain.errors import ConfigError
from pretrain.model.carry import CarryLawError, Flow, trace_fields
from pretrain.model.layers import LayerStack, build_layers, count_parameters, input_fields
from pretrain.parallel.shard import shard_of
from tests.model.small_models import FAMILIES, SINGLE, VOCABULARY, build, random_inputs, random_labels, settings


def _names(family: str) -> list[str]:
    return [spec.name for spec in build_layers(settings(family), SINGLE, seed=0)]


def test_the_layers_of_a_decoder_stand_in_order() -> None:
    assert _names("gpt") == ["embedding", "positions", "layers.0", "layers.1", "final_norm", "head"]
    assert _names("parallel post-norm") == ["embedding", "positions", "layers.0", "layers.1", "head"]


def test_the_layers_of_an_encoder_decoder_stand_in_order() -> None:
    encoder = ["encoder.embedding", "encoder.positions", "encoder.layers.0", "encoder.layers.1"]
    decoder = ["decoder.embedding", "decoder.positions", "decoder.layers.0", "decoder.layers.1"]
    assert _names("transformer") == [*encoder, *decoder, "head"]
    untied = "untied encoder-decoder with dropout"
    assert _names(untied) == [*encoder, "encoder.final_norm", *decoder, "decoder.final_norm", "head"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_list_can_be_cut_at_every_place(family: str) -> None:
    """Each boundary is sent as a tuple and made a carry again, as a pipeline does."""
    model = settings(family)
    specs = build_layers(model, SINGLE, seed=7)
    boundaries = trace_fields(input_fields(model), [(spec.name, spec.flow) for spec in specs])
    stack = build(model).eval()
    tied = {spec.tied_key: next(s.name for s in specs if s.tied_key == spec.tied_key) for spec in specs}
    inputs = random_inputs(model)
    tensors = tuple(inputs[name] for name in boundaries[0])
    for spec, before, after in zip(specs, boundaries, boundaries[1:], strict=False):
        path = spec.name if spec.tied_key is None else tied[spec.tied_key]
        given = dict(zip(before, tensors, strict=True))
        copy = dict(given)
        carry = spec.run(stack.get_submodule(path), given)
        assert given.keys() == copy.keys() and all(given[name] is copy[name] for name in copy), (
            "the input stays as it is"
        )
        assert set(carry) == set(after)
        tensors = tuple(carry[name] for name in after)
    torch.testing.assert_close(tensors[0], stack(inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_reads_every_field_that_it_asks_for_and_no_other(family: str) -> None:
    model = settings(family)
    stack = build(model)
    inputs = random_inputs(model)
    needed = input_fields(model)
    stack({name: inputs[name] for name in needed})
    for name in needed:
        with pytest.raises(KeyError, match=name):
            stack({other: inputs[other] for other in needed if other != name})


def test_sample_numbers_are_asked_for_where_something_is_dropped() -> None:
    assert "sample" not in input_fields(settings("gpt"))
    assert "sample" in input_fields(settings("gpt", attention_dropout=0.1))
    assert "sample" in input_fields(settings("gpt", dropout=0.1))


def test_memory_is_dropped_by_the_last_layer_that_attends_to_it() -> None:
    flows = {spec.name: spec.flow for spec in build_layers(settings("transformer"), SINGLE, seed=0)}
    assert "memory" not in flows["decoder.layers.0"].drops
    assert {"memory", "documents", "source_documents"} <= flows["decoder.layers.1"].drops


@pytest.mark.parametrize(
    ("flows", "message"),
    [
        ([("a", Flow(frozenset({"memory"})))], "layer a reads `memory`, which no earlier layer passes on"),
        (
            [
                ("a", Flow(frozenset({"tokens"}), frozenset({"hidden", "memory"}), frozenset({"tokens"}))),
                ("b", Flow(frozenset({"hidden"}), frozenset({"logits"}), frozenset({"hidden"}))),
            ],
            "`memory` leaves layer a but no later layer reads it",
        ),
        ([("a", Flow(frozenset({"tokens"}), frozenset({"logits"})))], "must leave `logits` or `losses` alone"),
        ([("a", Flow(frozenset(), frozenset({"mask"})))], "unknown fields in the carry"),
    ],
)
def test_the_carry_law_names_layer_and_field(flows: list[tuple[str, Flow]], message: str) -> None:
    with pytest.raises(CarryLawError, match=message):
        trace_fields(("tokens",), flows)


@pytest.mark.parametrize("family", FAMILIES)
def test_paths_in_a_stack_are_the_global_names(family: str) -> None:
    for path, parameter in build(settings(family)).named_parameters():
        assert shard_of(parameter).name == path
        assert shard_of(parameter).shape == tuple(parameter.shape)


def test_parameters_of_a_block_have_their_names_and_shapes() -> None:
    model = settings("transformer", biases=("attention", "feed_forward", "norm"), norm_position="pre")
    shapes = {
        name: tuple(p.shape) for name, p in build(model).named_parameters() if name.startswith("decoder.layers.1.")
    }
    attention = {
        "query.weight": (32, 32), "query.bias": (32,), "key_value.weight": (64, 32), "key_value.bias": (64,),
        "output.weight": (32, 32), "output.bias": (32,),
    }  # fmt: skip
    norms = ("attention_norm", "cross_attention_norm", "feed_forward_norm")
    expected = {
        **{f"{kind}.{name}": shape for kind in ("attention", "cross_attention") for name, shape in attention.items()},
        **{f"{norm}.{name}": (32,) for norm in norms for name in ("weight", "bias")},
        "feed_forward.up.weight": (48, 32), "feed_forward.up.bias": (48,),
        "feed_forward.down.weight": (32, 48), "feed_forward.down.bias": (32,),
    }  # fmt: skip
    assert {name.removeprefix("decoder.layers.1."): shape for name, shape in shapes.items()} == expected


def test_a_parallel_block_has_one_norm() -> None:
    names = {name for name, _ in build(settings("palm")).named_parameters() if name.startswith("layers.0.")}
    assert names == {
        f"layers.0.{part}.weight"
        for part in (
            "norm", "attention.query", "attention.key_value", "attention.output",
            "feed_forward.up", "feed_forward.gate", "feed_forward.down",
        )
    }  # fmt: skip


def test_a_tied_table_is_one_parameter_and_learns_from_every_use() -> None:
    model = settings("transformer")
    stack = build(model)
    tables = [name for name, p in stack.named_parameters() if p.shape == (37, 32)]
    assert tables == ["encoder.embedding.weight"]
    keys = {spec.name: spec.tied_key for spec in build_layers(model, SINGLE, seed=0)}
    assert keys["encoder.embedding"] == keys["decoder.embedding"] == keys["head"] == "embedding"
    inputs = random_inputs(model)
    inputs["source_tokens"] = inputs["source_tokens"] % 7
    inputs["tokens"] = 10 + inputs["tokens"] % 7
    logits = stack(inputs)
    (rows,) = torch.autograd.grad(logits[..., 20:22].sum(), stack.get_parameter(tables[0]))
    touched = set(rows.abs().sum(1).nonzero().flatten().tolist())
    assert touched == set(inputs["source_tokens"].unique().tolist()) | set(inputs["tokens"].unique().tolist()) | {
        20,
        21,
    }


def test_any_place_of_a_tied_table_builds_the_same_module() -> None:
    tied = [spec for spec in build_layers(settings("transformer"), SINGLE, seed=3) if spec.tied_key]
    weights = [dict(spec.build().named_parameters())["weight"] for spec in tied]
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    assert {shard_of(weight).name for weight in weights} == {"encoder.embedding.weight"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_of_parameters_is_that_of_the_built_model(family: str) -> None:
    model = settings(family)
    assert count_parameters(model) == sum(p.numel() for p in build(model).parameters())


def test_a_vocabulary_that_is_not_known_yet_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size is not known"):
        count_parameters(settings("gpt", vocab_size=None))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_has_the_precision_of_the_weights(family: str, precision: torch.dtype) -> None:
    model = settings(family)
    stack = build(model).to(precision)
    seen: set[torch.dtype] = set()
    for name, module in stack.named_modules():
        if name.rpartition(".")[0].endswith("layers"):
            module.register_forward_hook(lambda _module, _given, carry: seen.add(carry["hidden"].dtype))
    inputs = random_inputs(model)
    logits = stack(inputs)
    logits.float().logsumexp(-1).sum().backward()
    assert seen == {precision} and logits.dtype == precision
    exact = build(model)(inputs).to(precision)
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_starts_near_the_uniform_distribution(family: str) -> None:
    model = settings(family, initialization={})
    stack = LayerStack(build_layers(model, SINGLE, seed=1)).eval()
    inputs = random_inputs(model)
    loss = F.cross_entropy(stack(inputs).flatten(0, 1), random_labels(model, inputs).flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.6)
