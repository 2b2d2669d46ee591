"""How `auto` is filled in, and what a resumed run may change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config import RunConfig, load_config, read_resolved, write_resolved
from pretrain.errors import ConfigError
from pretrain.model.settings import ModelSettings
from pretrain.resolve import Machine, World, check_resume, differences, pipeline_layers, resolve

SMALL = """
model: {d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128}
layout: {pp: auto}
data: {dir: data/small, sequence_length: 32}
train: {steps: 100, global_batch_tokens: 768, micro_batch_sequences: 2}
"""
LAPTOP = Machine(cores=2)
GPUS = Machine(cores=64, gpus=8)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return lambda *overrides: load_config(file, overrides)


def layout(config: RunConfig) -> tuple[int, int, int]:
    grid = config.parallel_layout
    return grid.pp, grid.dp, grid.tp


@pytest.mark.parametrize(
    ("machine", "device", "precision"),
    [
        (Machine(cores=2), "cpu", "fp32"),
        (Machine(cores=2, cpu_flags=frozenset({"avx2", "avx512f"})), "cpu", "fp32"),
        (Machine(cores=2, cpu_flags=frozenset({"avx512_bf16"})), "cpu", "bf16"),
        (Machine(cores=2, cpu_flags=frozenset({"amx_bf16"})), "cpu", "bf16"),
        (Machine(cores=2, gpus=1), "cuda", "bf16"),
        (Machine(cores=2, gpus=1, gpu_bf16=False), "cuda", "fp32"),
    ],
)
def test_device_and_precision_follow_the_machine(
    machine: Machine, device: str, precision: str, load: Callable[..., RunConfig]
) -> None:
    config = resolve(load(), machine, World())
    assert (config.train.device, config.train.precision) == (device, precision)


@pytest.mark.parametrize(
    ("machine", "world", "overrides", "wanted"),
    [
        (Machine(cores=1), World(), [], (1, 1, 1)),
        (LAPTOP, World(), [], (2, 1, 1)),
        (Machine(cores=64), World(), [], (2, 1, 1)),
        (LAPTOP, World(1), [], (1, 1, 1)),
        (LAPTOP, World(4), [], (2, 2, 1)),
        (LAPTOP, World(3), [], (1, 3, 1)),
        (LAPTOP, World(), ["layout.zero_stage=3"], (1, 1, 1)),
        (LAPTOP, World(), ["layout.tp=2"], (1, 1, 2)),
        (Machine(cores=4), World(), ["layout.tp=2"], (2, 1, 2)),
        (LAPTOP, World(2, nodes=2), [], (2, 2, 1)),
        (Machine(cores=8, gpus=1), World(), [], (1, 1, 1)),
        (GPUS, World(), [], (2, 4, 1)),
        (GPUS, World(), ["layout.pp=1"], (1, 6, 1)),
        (Machine(cores=8, gpus=3), World(), [], (2, 1, 1)),
        (GPUS, World(), ["layout.dp=2"], (2, 2, 1)),
        (GPUS, World(nodes=2), ["layout.tp=2"], (2, 4, 2)),
    ],
)
def test_auto_layouts_fill_the_ranks_that_are_there(
    machine: Machine, world: World, overrides: list[str], wanted: tuple[int, int, int], load: Callable[..., RunConfig]
) -> None:
    """12 micro-batches of 2 sequences: 8 GPUs with pp=1 take the 6 data ranks that divide them."""
    assert layout(resolve(load(*overrides), machine, world)) == wanted


def test_ranks_that_the_layout_does_not_divide_are_told(load: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"--nproc: 3 ranks.*use a multiple of 2"):
        resolve(load("layout.pp=2"), LAPTOP, World(3))


def test_paths_hold_from_any_folder(
    load: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve(load(), LAPTOP, World())
    assert config.run_dir == tmp_path / "runs/small"
    assert config.data.folder == tmp_path / "data/small"


def test_the_tokenizers_vocabulary_stands_in_where_the_model_names_none(load: Callable[..., RunConfig]) -> None:
    assert resolve(load(), LAPTOP, World(), vocab_size=300).model.vocab_size == 300
    assert resolve(load("model.vocab_size=400"), LAPTOP, World(), vocab_size=300).model.vocab_size == 400


def test_a_run_keeps_what_it_was_resolved_to(load: Callable[..., RunConfig]) -> None:
    fast = Machine(cores=4, cpu_flags=frozenset({"amx_bf16"}))
    before = resolve(load(), fast, World(4))
    assert (layout(before), before.train.precision) == ((2, 2, 1), "bf16")
    after = resolve(load(), GPUS, World(), before=before)
    assert differences(before, after) == {}


def test_a_run_goes_to_another_layout_where_its_own_cannot_be(load: Callable[..., RunConfig]) -> None:
    before = resolve(load(), GPUS, World())
    after = resolve(load(), Machine(cores=8, gpus=1), World(), before=before)
    assert layout(after) == (1, 1, 1)
    assert layout(resolve(load("layout.pp=1"), LAPTOP, World(2), before=before)) == (1, 2, 1)


@pytest.mark.parametrize(
    "override",
    [
        "layout.tp=2",
        "layout.dp=3",
        "logging.interval_steps=7",
        "evaluation.sequences=3",
        "samples.prompts=[a]",
        "checkpoint.interval_steps=3",
        "checkpoint.keep=9",
        "run.dir=elsewhere",
    ],
)
def test_what_reaches_no_loss_may_change(override: str, load: Callable[..., RunConfig]) -> None:
    before = resolve(load(), LAPTOP, World())
    after = resolve(load(override), LAPTOP, World(), before=before)
    changes = check_resume(before, after)
    assert differences(before, after) and (changes or override.startswith("run.dir"))


@pytest.mark.parametrize(
    "override",
    ["train.steps=200", "run.seed=1", "model.d_ff=256", "optimizer.peak_lr=1.0", "train.precision=bf16", "data.dir=x"],
)
def test_any_other_change_is_refused_with_the_flag_that_allows_it(
    override: str, load: Callable[..., RunConfig]
) -> None:
    before = resolve(load(), LAPTOP, World())
    after = resolve(load(override), LAPTOP, World(), before=before)
    field = override.split("=")[0]
    with pytest.raises(ConfigError) as caught:
        check_resume(before, after)
    told = str(caught.value)
    assert f"{field}: " in told and " before, " in told and f"--allow-change {field}" in told
    section = field.split(".")[0]
    assert check_resume(before, after, [field]) == check_resume(before, after, [section]) != []


def test_a_change_that_names_no_field_is_refused(load: Callable[..., RunConfig]) -> None:
    config = resolve(load(), LAPTOP, World())
    with pytest.raises(ConfigError, match=r"--allow-change train.step: .*did you mean train.steps\?"):
        check_resume(config, config, ["train.step"])


def test_differences_see_through_the_file(load: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = resolve(load(), LAPTOP, World(), vocab_size=300)
    write_resolved(config, tmp_path)
    assert differences(read_resolved(tmp_path), config) == {}


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, 6),
        ({"norm_position": "post"}, 5),
        ({"positions": "rotary"}, 5),
        ({"architecture": "encoder_decoder", "num_encoder_layers": 3}, 12),
        ({"architecture": "encoder_decoder", "num_encoder_layers": 3, "norm_position": "post"}, 10),
        ({"architecture": "encoder_decoder", "num_encoder_layers": 3, "positions": "sinusoidal"}, 10),
    ],
)
def test_pipeline_layers_are_those_with_parameters(settings: dict[str, object], layers: int) -> None:
    from pretrain.model.layers import build_layers
    from pretrain.parallel.sequence import ModelMesh

    model = ModelSettings(d_model=16, num_layers=2, num_heads=2, d_ff=16, vocab_size=16, **settings)  # pyright: ignore
    specs = build_layers(model, ModelMesh(), seed=1)
    assert sum(spec.has_parameters for spec in specs) == pipeline_layers(model) == layers
    for spec in specs:
        assert spec.has_parameters == any(True for _ in spec.build().parameters()), spec.name


def test_streams_are_split_unasked_only_where_positions_divide(load: Callable[..., RunConfig]) -> None:
    def split(*overrides: str) -> str:
        return resolve(load("layout.tp=2", *overrides), LAPTOP, World()).layout.sequence_parallel

    assert split("layout.pp=2") == "enabled"
    assert split("layout.pp=1") == "disabled"
    assert split("layout.pp=2", "data.sequence_length=31") == "disabled"
    assert split("layout.pp=2", "layout.ulysses=16", "data.sequence_length=48") == "disabled"
