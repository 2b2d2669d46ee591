"""`pretrain data inspect` and `verify`, as a person types them, on a folder that `pretrain prepare` made."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.cli import main
from pretrain.data.token_shards import TokenShards, read_manifest
from tests.data_prep.corpora import data_settings, run, write_jsonl, write_texts

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspected")
    run(data_settings(root / "data", write_texts(root / "texts", 12)))
    return root / "data"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_inspect_shows_counts_lengths_and_decoded_documents(folder: Path, command: Command) -> None:
    code, out, _ = command("data", "inspect", folder, "--samples", 2, "--seed", 5)
    record = read_manifest(folder).splits["train"]
    lengths = TokenShards.open(folder, "train").lengths()
    assert code == 0
    assert f"{record.documents:,}" in out and f"{record.tokens:,}" in out
    assert f"{lengths.min():,} to {lengths.max():,} tokens a document, median {int(np.median(lengths)):,}" in out
    texts = [path.read_text() for path in folder.parent.glob("texts/*.txt")]
    shown = [line.removeprefix("  | ") for line in out.splitlines() if line.startswith("  | ")]
    assert len(shown) >= 4 and all(any(line.removesuffix(" …") in text for text in texts) for line in shown)


def test_inspect_of_a_shard_finds_its_tokenizer_above_it(folder: Path, command: Command, tmp_path: Path) -> None:
    shard = next(folder.glob("train/*.tokens"))
    code, out, _ = command("data", "inspect", shard, "--samples", 1)
    assert code == 0 and "documents" in out and "  | " in out
    alone = tmp_path / shard.name
    alone.write_bytes(shard.read_bytes())
    code, out, _ = command("data", "inspect", alone, "--samples", 1)
    assert code == 0 and "ids are shown, not text" in out


def test_control_characters_of_a_corpus_do_not_reach_the_terminal(tmp_path: Path, command: Command) -> None:
    rows = [{"text": f"red \x1b[31m and bell \x07 {number}"} for number in range(6)]
    run(data_settings(tmp_path / "data", write_jsonl(tmp_path / "a.jsonl", rows), "jsonl"))
    _, out, _ = command("data", "inspect", tmp_path / "data")
    assert "\x1b" not in out and "\x07" not in out and "\\x1b[31m" in out


def test_verify_names_every_damaged_file_and_ends_with_1(folder: Path, command: Command) -> None:
    assert command("data", "verify", folder)[0] == 0
    shards = sorted(folder.glob("*/*.tokens"))
    first, last = shards[0].read_bytes(), shards[-1].read_bytes()
    try:
        shards[0].write_bytes(first[:100] + bytes([first[100] ^ 4]) + first[101:])
        shards[-1].write_bytes(last[:-1])
        code, _, error = command("data", "verify", folder)
        assert code == 1 and "2 of its files are damaged" in error
        assert shards[0].name in error and shards[-1].name in error
    finally:
        shards[0].write_bytes(first)
        shards[-1].write_bytes(last)


@pytest.mark.parametrize("words", [("inspect", "nowhere"), ("verify", "nowhere"), ("inspect", "text.txt")])
def test_what_is_no_data_is_told_without_a_traceback(
    words: tuple[str, str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("no shard")
    code, _, error = command("data", *words)
    assert code == 3 and error.startswith("error: ") and words[1] in error


@pytest.mark.parametrize("tokens", ["copy", "link"])
def test_what_is_exported_is_imported_again(folder: Path, command: Command, tmp_path: Path, tokens: str) -> None:
    tokenizer = folder / "tokenizer.json"
    assert command("data", "export", folder, "--format", "megatron", "--out", tmp_path / "a")[0] == 0
    words = ["--format", "megatron", "--tokenizer", tokenizer, "--out", tmp_path / "back", "--tokens", tokens]
    code, out, error = command("data", "import", tmp_path / "a", *words, "--validation", "0.2")
    assert code == 0, error
    back = [TokenShards.open(tmp_path / "back", split) for split in ("train", "validation")]
    before = TokenShards.open(folder, "train")
    assert sum(shards.num_tokens for shards in back) == before.num_tokens and f"{back[0].num_tokens:,}" in out
    if tokens == "link":
        np.testing.assert_array_equal(back[0].read(0, back[0].num_tokens), before.read(0, back[0].num_tokens))
    assert command("data", "verify", tmp_path / "back")[0] == 0
    assert command("data", "inspect", tmp_path / "back", next((tmp_path / "back" / "train").iterdir()))[0] == 0


def test_a_link_of_another_format_is_refused(command: Command) -> None:
    code, _, error = command(
        "data", "import", "x.ds", "--format", "datatrove", "--tokenizer", "t", "--out", "o", "--tokens", "link"
    )
    assert code == 2 and "--format megatron" in error
