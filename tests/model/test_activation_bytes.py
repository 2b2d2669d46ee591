"""The closed forms of activation_bytes.py against what lives in memory between forward and backward."""

import time
from functools import cache
from typing import Any

import pytest
import torch

from pretrain.model.activation_bytes import MicroBatchSize, Mode, block_activation_bytes, logits_bytes
from pretrain.model.flops import Stack
from pretrain.model.recompute import Recompute
from pretrain.model.settings import ModelSettings
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh, SplitStream, WholeStream
from tests.model.live_storages import LiveStorages
from tests.model.small_models import SINGLE, build
from tests.worlds import World

_B, _S, _T = 2, 48, 32
_TILE = 16
_SIZE: dict[str, Any] = {"vocab_size": 37, "d_model": 64, "num_heads": 4, "d_ff": 192, "max_sequence_length": 64}
_LLAMA: dict[str, Any] = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "biases": ()}
_MODELS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt with dropout": {"dropout": 0.1, "attention_dropout": 0.1, "num_kv_heads": 2},
    "llama": {**_LLAMA, "num_kv_heads": 2},
    "qwen": {**_LLAMA, "num_kv_heads": 2, "qk_norm": "head"},
    "palm": {**_LLAMA, "norm": "layernorm", "block": "parallel", "num_kv_heads": 1},
    "experts": {
        **_LLAMA,
        "norm": "layernorm",
        "moe": {"num_experts": 8, "experts_per_token": 2, "d_ff": 64, "num_shared_experts": 1},
    },
    "transformer": {
        "architecture": "encoder_decoder",
        "norm_position": "post",
        "positions": "sinusoidal",
        "activation": "relu",
        "dropout": 0.1,
    },
}
_TYPES = {4: torch.float32, 2: torch.bfloat16}
_MODES: tuple[Mode, ...] = ("none", "selective", "full")


def _inputs() -> dict[str, torch.Tensor]:
    """Windows of one document each: their mask is a flag."""
    return {
        "tokens": torch.zeros(_B, _S, dtype=torch.long),
        "positions": torch.arange(_S).expand(_B, -1).contiguous(),
        "documents": torch.zeros(_B, _S, dtype=torch.long),
        "sample": torch.arange(_B),
        "source_tokens": torch.zeros(_B, _T, dtype=torch.long),
        "source_documents": torch.zeros(_B, _T, dtype=torch.long),
    }


def _live(model: ModelSettings, mesh: ModelMesh, recompute: Recompute, value_bytes: int) -> int:
    stack, inputs = build(model, mesh, recompute=recompute).to(_TYPES[value_bytes]), _inputs()
    stack(inputs)  # tables of positions are made once
    with LiveStorages() as storages:
        logits = stack(inputs)
        assert logits.requires_grad
        time.sleep(0.02 if mesh.model.size > 1 else 0)  # gloo's thread lets go of the last tensor a moment later
        return storages.bytes


def _measured(family: str, stack: Stack, mesh: ModelMesh, recompute: Recompute, value_bytes: int) -> int:
    """What one block more keeps: all that a stage's blocks share is left out."""
    layers = {"num_encoder_layers": 1} if _MODELS[family].get("architecture") == "encoder_decoder" else {}
    grown = "num_encoder_layers" if stack == "encoder" else "num_layers"
    few, many = (
        ModelSettings(**{**_SIZE, "num_layers": 1, **layers, **_MODELS[family], grown: number}) for number in (1, 2)
    )
    return _live(many, mesh, recompute, value_bytes) - _live(few, mesh, recompute, value_bytes)


def _counted(
    family: str, stack: Stack, mode: Mode, tile: int | None, value_bytes: Any, tp: int = 1, stream: Any = "whole"
) -> int:
    model = ModelSettings(**{**_SIZE, "num_layers": 1, **_MODELS[family]})
    size = MicroBatchSize(_B, _S, _T, tp=tp, stream=stream, value_bytes=value_bytes, rms_norm="composite")
    kind = "dense" if model.moe is None else "experts"
    return block_activation_bytes(model, stack, size, mode, tile, kind)


def _stacks(family: str) -> tuple[Stack, ...]:
    return ("encoder", "decoder") if _MODELS[family].get("architecture") == "encoder_decoder" else ("decoder",)


@pytest.mark.parametrize("value_bytes", _TYPES)
@pytest.mark.parametrize("family", _MODELS)
def test_a_block_keeps_and_recompute_saves_what_the_formula_says(family: str, value_bytes: int) -> None:
    for stack in _stacks(family):
        found = {mode: _measured(family, stack, SINGLE, Recompute.of(mode), value_bytes) for mode in _MODES}
        counted = {mode: _counted(family, stack, mode, None, value_bytes) for mode in _MODES}
        for mode in _MODES:
            assert found[mode] == pytest.approx(counted[mode], rel=0.02), (stack, mode)
        for mode in ("selective", "full"):
            saved = found["none"] - found[mode]
            assert saved > 0
            assert saved == pytest.approx(counted["none"] - counted[mode], rel=0.02), (stack, mode)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("family", ["gpt", "palm"])
def test_tiles_take_the_inner_activations_away(family: str, mode: Mode) -> None:
    found = _measured(family, "decoder", SINGLE, Recompute.of(mode, _TILE), 4)
    assert found == pytest.approx(_counted(family, "decoder", mode, _TILE, 4), rel=0.02)


@cache
def _mesh(tp: int, stream: str) -> ModelMesh:
    mesh = ProcessMesh.create(ParallelLayout(dp=4 // tp, tp=tp), torch.device("cpu"))
    return ModelMesh.of(mesh, SplitStream if stream == "split" else WholeStream)


def _measured_in_a_rank(family: str, tp: int, stream: str) -> dict[tuple[str, str], int]:
    return {
        (stack, mode): _measured(family, stack, _mesh(tp, stream), Recompute.of(mode), 2)
        for stack in _stacks(family)
        for mode in _MODES
    }


@pytest.mark.parametrize(
    ("family", "tp", "stream"),
    [
        ("gpt with dropout", 2, "split"),
        ("qwen", 4, "whole"),
        ("palm", 2, "split"),
        ("experts", 2, "whole"),
        ("transformer", 2, "split"),
    ],
)
def test_the_formula_holds_under_tensor_parallelism(world: World, family: str, tp: int, stream: str) -> None:
    """Of qwen's two key-value heads, projected whole on four ranks, each uses one."""
    for ranks in world.run(_measured_in_a_rank, family, tp, stream):
        for (stack, mode), found in ranks.items():
            counted = _counted(family, stack, mode, None, 2, tp, stream)  # type: ignore[arg-type]
            assert found == pytest.approx(counted, rel=0.03), (stack, mode)


def test_gpt2_keeps_the_34_bytes_a_value_of_the_paper() -> None:
    """Korthikanti et al. 2022, equation 1, without the term of attention's scores; the rest are sums of rows."""
    model = ModelSettings(vocab_size=50257, d_model=1600, num_layers=48, num_heads=25, d_ff=6400, dropout=0.1)
    size = MicroBatchSize(1, 1024)
    assert block_activation_bytes(model, "decoder", size) == pytest.approx(34 * 1024 * 1600, rel=2e-3)


def test_dropped_probabilities_bring_the_papers_second_term() -> None:
    """5 a s / h of the paper: 2 bytes a score, 1 of mask, 2 dropped. Ours are fp32 before they are dropped: 7."""
    model = ModelSettings(vocab_size=50257, d_model=1600, num_layers=48, num_heads=25, d_ff=6400, dropout=0.1)
    dropping = model.model_copy(update={"attention_dropout": 0.1})
    size = MicroBatchSize(1, 1024)
    more = block_activation_bytes(dropping, "decoder", size) - block_activation_bytes(model, "decoder", size)
    assert more == pytest.approx(7 * 25 * 1024**2, rel=1e-2)
    assert block_activation_bytes(dropping, "decoder", size, "selective") < 30 * 1024 * 1600


def test_logits_are_of_a_ranks_columns_and_a_tiles_tokens() -> None:
    model = ModelSettings(vocab_size=101, d_model=8, num_layers=1, num_heads=1, d_ff=8)
    assert logits_bytes(model, MicroBatchSize(2, 50)) == 2 * 50 * 101 * 2
    assert logits_bytes(model, MicroBatchSize(2, 50, tp=2), 10) == 10 * 51 * 2
    assert logits_bytes(model, MicroBatchSize(2, 50), 1000) == 2 * 50 * 101 * 2
