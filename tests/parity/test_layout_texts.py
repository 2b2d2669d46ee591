from pathlib import Path

import pytest

from pretrain.errors import ConfigError
from pretrain.parity.layouts import CLIP_NORM, DEFAULT_VOCABULARY, check_size, layout_overrides, plain, read_cases


def test_bare_keys_are_the_layouts_and_dotted_ones_any_field():
    assert layout_overrides("pp=2, tp=2") == ["layout.pp=2", "layout.tp=2"]
    assert layout_overrides("dp=2,optimizer.betas=[0.9,0.99],train.recompute=full") == [
        "layout.dp=2",
        "optimizer.betas=[0.9,0.99]",
        "train.recompute=full",
    ]
    assert layout_overrides("") == []


def test_a_part_that_is_no_assignment_is_told():
    with pytest.raises(ConfigError, match=r"'tp' is not KEY=VALUE; write pp=2,tp=2"):
        layout_overrides("pp=2,tp")


def test_a_text_starts_from_a_plain_layout_and_set_reaches_every_one(tmp_path: Path):
    file = tmp_path / "piped.yaml"
    file.write_text("extends: parity.yaml\nlayout: {pp: 2, dp: auto, zero_stage: 1}\n")
    (one, two), _ = read_cases(str(file), ["model.num_layers=3"], ["", "tp=2"], device="cpu", steps=5)
    assert one.config.parallel_layout.world_size == 1
    assert (two.config.parallel_layout.pp, two.config.parallel_layout.dp, two.config.layout.tp) == (1, 1, 2)
    assert one.config.model.num_layers == two.config.model.num_layers == 3


def test_what_parity_changes_can_be_changed_back():
    (case,), _ = read_cases("parity.yaml", [], ["dp=2"], device="cpu", steps=5)
    assert (case.config.optimizer.clip_norm, case.config.optimizer.epsilon) == (CLIP_NORM, 1e-6)
    changed = ["optimizer.clip_norm=0.5", "optimizer.peak_lr=0.002"]
    (case,), _ = read_cases("parity.yaml", changed, ["dp=2,optimizer.epsilon=1e-7"], device="cpu", steps=5)
    assert (case.config.optimizer.clip_norm, case.config.optimizer.peak_lr) == (0.5, 0.002)
    assert case.config.optimizer.epsilon == 1e-7


def test_a_vocabulary_that_a_tokenizer_would_tell_is_stood_in_for():
    (case,), notes = read_cases("quickstart.yaml", [], [""], device="cpu", steps=5)
    assert case.config.model.vocab_size == DEFAULT_VOCABULARY
    assert f"vocabulary of {DEFAULT_VOCABULARY}" in notes[0]


def test_every_refusal_is_told_with_its_layout():
    with pytest.raises(ConfigError) as caught:
        read_cases("parity.yaml", [], ["tp=3", "tp=2", "pp=2,zero_stage=2"], device="cpu", steps=5)
    told = str(caught.value)
    assert (
        'layout "tp=3": layout.tp=3 must divide' in told and 'layout "pp=2,zero_stage=2": layout.zero_stage=2' in told
    )
    assert "tp=2" not in told.replace("pp=2", "").split("tp=3")[0]


def test_a_model_too_large_for_one_process_is_told_with_its_size_and_the_way_out():
    sizes = ["data={dir: unused, sequence_length: 2048}", "train.global_batch_tokens=4096", "train.steps=1"]
    more = ["train.micro_batch_sequences=1"]
    cases, _ = read_cases("models/llama3-8b.yaml", [*sizes, *more], ["tp=2"], device="cpu", steps=5)
    with pytest.raises(ConfigError, match=r"8,030,261,248 parameters.*GiB.*--set model.num_layers=2"):
        check_size(cases, 5, memory_bytes=64 << 30)
    check_size(read_cases("parity.yaml", [], ["tp=2"], device="cpu", steps=5)[0], 5, memory_bytes=1 << 30)


def test_one_process_keeps_the_training_and_drops_the_layout():
    text = "dp=2,zero_stage=3,train.recompute=full,train.loss_tile_tokens=3,train.precision=bf16"
    (case, one), _ = read_cases("parity.yaml", [], [text, ""], device="cpu", steps=5)
    assert plain(case.config) == plain(one.config) == one.config
