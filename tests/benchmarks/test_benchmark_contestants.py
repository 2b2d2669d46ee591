"""The benchmark compares like with like: the same function, the same precision, the same step."""

import pytest
import torch

from benchmarks.contestants import random_batches, run_config
from benchmarks.minimal_gpt import MinimalGPT
from benchmarks.plain_loop import PlainLoop
from pretrain.model.flops import num_parameters
from pretrain.model.layers import LayerStack, build_layers
from pretrain.model.settings import ModelSettings
from pretrain.optim.settings import OptimizerSettings
from pretrain.parallel.sequence import ModelMesh

MODEL = ModelSettings(vocab_size=61, d_model=32, num_layers=2, num_heads=4, d_ff=128, max_sequence_length=16)
CONFIG = run_config(MODEL, "fp32", batch_sequences=4, micro_batch_sequences=2)


def stack() -> LayerStack:
    return LayerStack(build_layers(MODEL, ModelMesh(), seed=1))


def minimal_with_weights_of(layers: LayerStack) -> MinimalGPT:
    """The minimal GPT with the stack's weights; keys and values lie by head in the stack, one after the other in the GPT."""
    gpt = MinimalGPT(61, 32, 2, 4, 16)
    given = dict(layers.named_parameters())
    taken: dict[str, torch.Tensor] = {
        "embedding.weight": given["embedding.weight"],
        "positions.weight": given["positions.weight"],
    }
    for kind in ("weight", "bias"):
        taken[f"final_norm.{kind}"] = given[f"final_norm.{kind}"]
        for i in range(2):
            key_value = given[f"layers.{i}.attention.key_value.{kind}"].unflatten(0, (4, 2, 8))
            query = given[f"layers.{i}.attention.query.{kind}"]
            parts = (query, key_value[:, 0].flatten(0, 1), key_value[:, 1].flatten(0, 1))
            taken[f"layers.{i}.query_key_value.{kind}"] = torch.cat(parts)
            for ours, theirs in (
                ("output", "attention.output"),
                ("up", "feed_forward.up"),
                ("down", "feed_forward.down"),
                ("attention_norm", "attention_norm"),
                ("feed_forward_norm", "feed_forward_norm"),
            ):
                taken[f"layers.{i}.{ours}.{kind}"] = given[f"layers.{i}.{theirs}.{kind}"]
    gpt.load_state_dict(taken)
    return gpt


def test_minimal_gpt_is_the_same_function_as_the_layers():
    layers = stack()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    gpt = minimal_with_weights_of(layers)
    inputs = random_batches(CONFIG, 1)[0][0].inputs
    torch.testing.assert_close(gpt(inputs["tokens"]), layers(inputs), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in gpt.parameters()) == num_parameters(MODEL)


def test_plain_loop_accumulates_to_the_gradient_of_the_whole_batch():
    halves = random_batches(CONFIG, 1)[0]
    whole = random_batches(
        CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"micro_batch_sequences": 4})}), 1
    )[0]
    ends = []
    for batch in (halves, whole):
        layers = stack()
        loop = PlainLoop(layers, lambda b, layers=layers: layers(b.inputs), OptimizerSettings(epsilon=1e-6), "fp32")
        loss = loop.step(batch)
        ends.append((loss, torch.cat([p.detach().flatten() for p in layers.parameters()])))
    assert len(halves) == 2 and len(whole) == 1
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-6)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-5, atol=1e-6)


def test_plain_bf16_loop_keeps_what_is_too_small_for_bf16():
    layers = stack()
    settings = OptimizerSettings(peak_lr=1e-5, weight_decay=0.0)
    loop = PlainLoop(layers, lambda batch: layers(batch.inputs), settings, "bf16")
    before = [master.detach().clone() for master in loop.masters]
    loop.step(random_batches(CONFIG, 1)[0])
    norm = layers.get_parameter("final_norm.weight")
    master = next(m for w, m in zip(loop.weights, loop.masters, strict=True) if w is norm)
    assert norm.dtype == torch.bfloat16 and torch.equal(norm, torch.ones_like(norm))
    assert not torch.equal(master, torch.ones_like(master))
    assert all(m.dtype == torch.float32 and m.shape == b.shape for m, b in zip(loop.masters, before, strict=True))
    assert all(torch.equal(w, m.bfloat16()) for w, m in zip(loop.weights, loop.masters, strict=True))
