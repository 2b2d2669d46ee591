"""Tokenizers: exact on any text, deterministic, deaf to special tokens in text, and checked against the shards."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_prep.tokenize import (
    SPECIAL_TOKENS,
    Encoder,
    read_tokenizer,
    special_tokens,
    token_byte_lengths,
    train_tokenizer,
    vocabulary_size,
)
from pretrain.data.token_shards import TokenShards
from pretrain.data.tokenizer import load_tokenizer
from pretrain.data.tokenizer_settings import TokenizerSettings
from pretrain.errors import DataError
from tests.data_prep.corpora import data_settings, output, run, text, write_texts

TEXTS = [text(number) for number in range(30)]
ODD = [
    "",
    " ",
    "\n\n\t  x",
    "déjà vu 漢字 🙂",
    "a" * 500,
    "\u0000\u0007",
    "I'll 12345 re-do\r\n",
    *SPECIAL_TOKENS,
    "<|endoftext|>" * 3,
]


@pytest.fixture(scope="module", params=["gpt2", "llama3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerSettings(vocab_size=400, pattern=request.param))


def test_any_text_survives_the_round_trip(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    for given, ids in zip([*TEXTS, *ODD], encoder.encode([*TEXTS, *ODD]), strict=True):
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == given


def test_special_tokens_in_text_stay_text(tokenizer: Tokenizer) -> None:
    special = special_tokens(tokenizer)
    forbidden = {special.end_of_text, special.target, special.padding}
    for ids in Encoder(tokenizer).encode(ODD):
        assert not forbidden & set(ids.tolist())


def test_training_is_deterministic_and_of_the_asked_size(tokenizer: Tokenizer) -> None:
    pattern = "llama3" if "Sequence" in tokenizer.to_str() else "gpt2"
    again = train_tokenizer(iter(TEXTS), TokenizerSettings(vocab_size=400, pattern=pattern))
    assert again.to_str() == tokenizer.to_str() and vocabulary_size(tokenizer) == 400


def test_token_bytes_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    lengths = token_byte_lengths(tokenizer)
    for given, ids in zip([*TEXTS, *ODD], Encoder(tokenizer).encode([*TEXTS, *ODD]), strict=True):
        assert lengths[ids].sum() == len(given.encode())


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match=r"vocab_size=100: a byte-level vocabulary has at least 259"):
        train_tokenizer(TEXTS, TokenizerSettings(vocab_size=100))


def test_the_patterns_differ_in_what_they_keep_together() -> None:
    texts = ["x = 123456\n    y = 7\n"] * 300
    counts = {}
    for pattern in ("gpt2", "llama3"):
        trained = train_tokenizer(texts, TokenizerSettings(vocab_size=400, pattern=pattern))
        counts[pattern] = [piece for piece, _ in trained.pre_tokenizer.pre_tokenize_str("123456")]  # type: ignore[union-attr]
    assert counts == {"gpt2": ["123456"], "llama3": ["123", "456"]}


def existing(path: Path) -> Path:
    """A tokenizer.json with an end token of its own, and without ours for targets and padding."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    trained.enable_truncation(8)
    trained.save(str(path))
    return path


def test_an_existing_tokenizer_is_used_and_gets_what_it_lacks(tmp_path: Path) -> None:
    path = existing(tmp_path / "mine.json")
    folder = write_texts(tmp_path / "texts", documents=6)
    data = data_settings(tmp_path / "data", folder, tokenizer={"path": str(path)})
    report = run(data)
    assert report.vocab_size == 302
    loaded, shards = load_tokenizer(data.folder), TokenShards.open(data.folder, "train")
    assert loaded.special.end_of_text == 0 and {loaded.special.target, loaded.special.padding} == {300, 301}
    assert loaded.decode(shards.document(0).tolist()) in {file.read_text() for file in folder.iterdir()}
    run(data_settings(tmp_path / "again", folder, tokenizer={"path": str(path)}))
    assert output(tmp_path / "again").keys() == output(data.folder).keys()


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    trained = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    trained.save(str(tmp_path / "words.json"))
    with pytest.raises(DataError, match=r"words\.json: not a byte-level tokenizer"):
        read_tokenizer(tmp_path / "words.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json: not a tokenizer\.json"):
        read_tokenizer(tmp_path / "x.json")
    with pytest.raises(DataError, match="names no file"):
        read_tokenizer(tmp_path / "nowhere.json")


def test_a_tokenizer_that_does_not_match_the_shards_is_refused(tmp_path: Path) -> None:
    data = data_settings(tmp_path / "data", write_texts(tmp_path / "texts", documents=4))
    run(data)
    path = data.folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"tokenizer\.json: this is not the tokenizer that the token shards were made with"
    ):
        load_tokenizer(data.folder)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: not found"):
        load_tokenizer(data.folder)


def test_loaded_tokenizers_keep_special_tokens_out_of_text(tmp_path: Path) -> None:
    data = data_settings(tmp_path / "data", write_texts(tmp_path / "texts", documents=4))
    run(data)
    loaded = load_tokenizer(data.folder)
    ids = loaded.encode("a<|endoftext|>b")
    assert loaded.special.end_of_text not in ids and loaded.decode(ids) == "a<|endoftext|>b"
    assert loaded.decode([*ids, loaded.special.end_of_text]) == "a<|endoftext|>b"
