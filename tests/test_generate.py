"""Text from a checkpoint: what the model has learned comes out, repeatably; what cannot be asked is refused with the fix."""

import io
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pretrain.checkpoint.format import latest_checkpoint
from pretrain.config import read_resolved
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.files import read_json_lines
from pretrain.generate import TextStream, generate, write_samples
from pretrain.model.layers import LayerStack, build_layers
from pretrain.parallel.sequence import ModelMesh
from tests.trained_runs import CYCLE, DICTIONARY, copy_of, save_stack, trained_run


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    return copy_of(trained_run("counting"), tmp_path)


@pytest.fixture
def translating(tmp_path: Path) -> Path:
    return copy_of(trained_run("translating"), tmp_path)


def silent() -> Console:
    return Console(file=io.StringIO(), width=80)


def test_a_decoder_goes_on_as_it_has_learned(counting: Path) -> None:
    (sample,) = generate(counting, ["red green blue"], temperature=0.0, max_tokens=30, console=silent())
    words = sample.text.split()
    assert len(words) >= 3
    successors = sum(CYCLE[(CYCLE.index(a) + 1) % 6] == b for a, b in pairwise(words) if a in CYCLE)
    assert successors >= 0.6 * (len(words) - 1)


def test_an_encoder_decoder_translates_greedily_and_by_beam(translating: Path) -> None:
    prompts = ["one", "two three", "six five"]
    wanted = [word for prompt in prompts for word in (DICTIONARY[w] for w in prompt.split())]
    for beam_size in (0, 3):
        samples = generate(translating, prompts, beam_size=beam_size, temperature=0.0, console=silent())
        words = " ".join(sample.text for sample in samples).split()
        assert sum(a == b for a, b in zip(words, wanted, strict=False)) >= 4


def test_the_same_seed_writes_the_same_text(counting: Path) -> None:
    def text(seed: int) -> str:
        (sample,) = generate(counting, ["red"], temperature=1.5, top_p=1.0, seed=seed, console=silent())
        return sample.text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_samples_are_kept_with_step_and_settings(counting: Path) -> None:
    generate(counting, ["red", "green blue"], temperature=0.5, top_p=0.9, seed=3, max_tokens=4, console=silent())
    rows = read_json_lines(counting / "samples.jsonl")
    assert [row["prompt"] for row in rows] == ["red", "green blue"]
    assert {row["step"] for row in rows} == {80}
    assert rows[0]["settings"] == {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 4}
    assert all(row["text"] for row in rows)


def test_the_samples_of_a_translation_run_show_held_out_pairs(translating: Path) -> None:
    write_samples(translating, silent())
    rows = read_json_lines(translating / "samples.jsonl")
    assert [row["prompt"] for row in rows if "reference" not in row] == ["two one"]
    held_out = [row for row in rows if "reference" in row]
    assert len(held_out) == 4
    for row in held_out:
        assert row["reference"] == " ".join(DICTIONARY[word] for word in row["prompt"].split())
        assert row["settings"]["beam_size"] == 3


def test_a_single_prompt_is_printed_whole_while_it_grows(counting: Path) -> None:
    console = silent()
    (sample,) = generate(counting, ["red"], temperature=0.0, console=console)
    assert console.file.getvalue() == f"red{sample.text}\n"  # type: ignore[attr-defined]


def test_text_stops_where_the_model_was_trained_to(counting: Path) -> None:
    (sample,) = generate(counting, ["red"], temperature=0.0, max_tokens=10_000, console=silent())
    assert len(sample.text) < 400


def test_a_character_that_spans_tokens_is_told_whole() -> None:
    pieces: list[str] = []
    stream = TextStream(lambda tokens: bytes(tokens).decode(errors="replace"), pieces.append)
    for byte in "aöb".encode():
        stream.add(byte)
    stream.end()
    assert [piece for piece in pieces if piece] == ["a", "ö", "b"]


def test_control_characters_do_not_reach_the_terminal(counting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.data.tokenizer.Tokenizer.decode", lambda self, ids: "\x1b[2Jgone" if len(ids) else "")
    console = silent()
    generate(counting, ["red"], temperature=0.0, max_tokens=3, console=console)
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [""]}, "prompt 1 is empty"),
        ({"prompts": ["red", ""]}, "prompt 2 is empty"),
        ({"prompts": ["red green " * 40]}, "trained on at most 31"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must be 0 (greedy) or more, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be over 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be over 0 and at most 1"),
        ({"beam_size": 4}, "a beam search is for translations"),
    ],
)
def test_what_cannot_be_asked_is_refused(counting: Path, changes: dict[str, object], message: str) -> None:
    arguments = {"prompts": ["red"], "console": silent(), **changes}
    with pytest.raises(ConfigError) as told:
        generate(counting, **arguments)  # type: ignore[arg-type]
    assert message in str(told.value)


def test_a_run_without_prompts_asks_for_one(counting: Path) -> None:
    config = counting / "config.yaml"
    config.write_text(config.read_text().replace("prompts:\n  - red green\n", "prompts: []\n"))
    with pytest.raises(ConfigError, match="give --prompt TEXT"):
        generate(counting, console=silent())
    assert write_samples(counting, silent()) == []


def test_a_source_that_is_too_long_is_refused(translating: Path) -> None:
    with pytest.raises(ConfigError, match=r"at most 16 \(data.source_length\)"):
        generate(translating, ["one " * 40], console=silent())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        generate(tmp_path, ["red"], console=silent())


def test_a_run_without_a_checkpoint_is_refused_with_the_fix(counting: Path) -> None:
    shutil.rmtree(counting / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet; `pretrain train` saves one"):
        generate(counting, ["red"], console=silent())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(counting: Path) -> None:
    config = read_resolved(counting)
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(counting)})})
    save_stack(config, LayerStack(build_layers(config.model, ModelMesh(), seed=1)), 90)
    newest = latest_checkpoint(counting)
    assert newest is not None and newest.step == 90
    tensors = next(newest.path.glob("*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    console = silent()
    (sample,) = generate(counting, ["red"], temperature=0.0, console=console)
    assert sample.step == 80
    assert "step 90, generation 1" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_a_checkpoint_of_another_tokenizer_is_refused(counting: Path) -> None:
    config = read_resolved(counting)
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(counting)})})
    save_stack(
        config,
        LayerStack(build_layers(config.model, ModelMesh(), seed=1)),
        90,
        tokenizer_hash="ab" * 16,
    )
    with pytest.raises(CheckpointError, match="another tokenizer"):
        generate(counting, ["red"], console=silent())


def test_a_missing_data_folder_is_a_data_error(counting: Path, tmp_path: Path) -> None:
    config = counting / "config.yaml"
    data_dir = read_resolved(counting).data.dir
    config.write_text(config.read_text().replace(data_dir, str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=r"manifest.json: not found"):
        generate(counting, ["red"], console=silent())


def test_no_process_group_is_asked_for(counting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: pytest.fail("asked for a process group"))
    generate(counting, ["red"], temperature=0.0, max_tokens=2, console=silent())
