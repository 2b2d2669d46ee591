"""Engines give Hugging Face's ids on any text, or say why they do not serve; the audit finds one that does not."""

import builtins
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

from data_prep import token_engines
from data_prep.audit import AUDIT_FRACTION, UNIT
from data_prep.token_engines import Gigatoken, HuggingFace, choose_engine
from data_prep.tokenize import Encoder, read_tokenizer, train_tokenizer
from pretrain.data.tokenizer_settings import EngineName, TokenizerSettings
from pretrain.errors import DataError
from tests.data_prep.adversarial import adversarial, unseen_text
from tests.data_prep.corpora import data_settings, run, write_texts

FAST: list[EngineName] = ["gigatoken", "tiktoken"]
ALL = 1.0
"""A share that audits everything."""


@pytest.fixture(scope="module", params=["gpt2", "llama3"])
def content(request: pytest.FixtureRequest) -> str:
    texts = [*unseen_text(700_000, step=31), *adversarial(1000)]
    return train_tokenizer(texts, TokenizerSettings(vocab_size=4000, pattern=request.param)).to_str()


@pytest.fixture(scope="module")
def small() -> str:
    return train_tokenizer(unseen_text(50_000), TokenizerSettings(vocab_size=500, pattern="llama3")).to_str()


def differing(content: str, engine: EngineName, texts: Sequence[str]) -> list[str]:
    right, given = HuggingFace(content).encode(texts), choose_engine(content, engine).fast.encode(texts)
    assert all(ids.dtype == np.uint32 for ids in given)
    return [text for text, a, b in zip(texts, right, given, strict=True) if not np.array_equal(a, b)]


@pytest.mark.parametrize("engine", FAST)
def test_ids_are_those_of_hugging_face_on_5000_adversarial_strings(content: str, engine: EngineName) -> None:
    texts = list(adversarial(5000))
    assert len(set(texts)) == 5000 and differing(content, engine, texts) == []


def test_ids_are_those_of_hugging_face_on_unseen_text(content: str) -> None:
    texts = unseen_text(3_000_000, step=7)
    assert sum(len(text.encode()) for text in texts) > 2_900_000
    right = HuggingFace(content).encode(texts)
    for engine in FAST:
        given = choose_engine(content, engine).fast.encode(texts)
        assert all(np.array_equal(a, b) for a, b in zip(right, given, strict=True)), engine


def test_texts_with_disputed_code_points_would_differ_but_for_the_guard(content: str) -> None:
    disputed = [f"word{chr(point)}word {chr(point)}" for point in (0x88F, 0xC5C, 0xA7CE, 0x10940, 0x323B0)]
    state = choose_engine(content, "gigatoken").fast._code_points  # type: ignore[attr-defined]
    assert not any(state.agreed(text.encode()) for text in disputed)
    assert state.agreed("déjà vu 漢字 🙂 한국어 \u0378".encode())
    assert differing(content, "gigatoken", disputed) == []


def test_gigatoken_made_anew_for_its_memory_gives_the_same_ids(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_engines, "RENEWED_AFTER", 1000)
    engine, texts = Gigatoken(small), unseen_text(100_000)
    before = engine._tokenizer
    again = [engine.encode([text])[0] for text in texts]
    assert engine._tokenizer is not before
    assert all(np.array_equal(a, b) for a, b in zip(again, HuggingFace(small).encode(texts), strict=True))


def test_gigatoken_is_made_anew_before_a_worker_has_seen_100_million_characters(small: str) -> None:
    engine, text = Gigatoken(small), "word " * 2_000_000
    first = engine._tokenizer
    for _ in range(10):
        engine.encode([text])
    assert engine._tokenizer is not first


def test_the_share_of_the_config_is_that_of_an_encoder() -> None:
    assert TokenizerSettings().audit_fraction == AUDIT_FRACTION


def test_auto_takes_the_fastest_and_says_nothing(content: str) -> None:
    encoder = Encoder(Tokenizer.from_str(content))
    assert (encoder.engine, encoder.notes) == ("gigatoken", ())


def test_auto_falls_back_where_engines_are_not_installed(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name in gone:
            raise ImportError(f"No module named {name!r}")
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for gone, taken in (({"gigatoken"}, "tiktoken"), ({"gigatoken", "tiktoken"}, "hf")):
        choose_engine.cache_clear()
        encoder = Encoder(Tokenizer.from_str(small))
        assert encoder.engine == taken and "gigatoken is not installed" in encoder.notes[0]
        assert len(encoder.notes) == len(gone)
        with pytest.raises(DataError, match=r"tokenizer\.engine=gigatoken: gigatoken is not installed .*engine: auto"):
            Encoder(Tokenizer.from_str(small), "gigatoken")
    choose_engine.cache_clear()


class Panics(Gigatoken):
    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        raise type("PanicException", (BaseException,), {})("index out of bounds")


class Wrong(Gigatoken):
    """One id is wrong, where a text holds a word that no probe does."""

    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        encoded = super().encode(texts, utf8)
        for text, ids in zip(texts, encoded, strict=True):
            if (at := text.find("quixotic")) >= 0:
                ids[len(super().encode([text[:at]])[0])] += 1
        return encoded


class WrongAtOnce(Gigatoken):
    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        return [ids[::-1] for ids in super().encode(texts, utf8)]


@pytest.mark.parametrize(
    ("broken", "note"), [(Panics, "fails .index out of bounds"), (WrongAtOnce, "disagrees with Hugging Face's")]
)
def test_auto_falls_back_where_an_engine_raises_or_disagrees(
    small: str, monkeypatch: pytest.MonkeyPatch, broken: type, note: str
) -> None:
    monkeypatch.setitem(token_engines.ENGINES, "gigatoken", broken)
    choose_engine.cache_clear()
    encoder = Encoder(Tokenizer.from_str(small))
    choose_engine.cache_clear()
    assert encoder.engine == "tiktoken"
    assert re.search(f"gigatoken {note}", encoder.notes[0])


def with_steps(content: str, **steps: Any) -> str:
    tokenizer = Tokenizer.from_str(content)
    for name, step in steps.items():
        setattr(tokenizer, name, step)
    return tokenizer.to_str()


def test_a_pattern_that_gigatoken_does_not_know_falls_to_tiktoken(small: str) -> None:
    split = pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated")  # the rest is no match: one word between two others
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    content = with_steps(small, pre_tokenizer=pre_tokenizers.Sequence([split, byte_level]))
    engines = choose_engine(content, "auto")
    assert engines.fast.name == "tiktoken" and engines.notes[0].startswith("gigatoken fails") and not engines.cuttable
    assert differing(content, "auto", list(adversarial(300))) == []


def test_what_changes_text_falls_to_hugging_face(small: str) -> None:
    content = with_steps(small, normalizer=normalizers.NFC())
    engines = choose_engine(content, "auto")
    assert engines.fast.name == "hf" and all(
        "takes no normalizer, which the tokenizer has (NFC)" in x for x in engines.notes
    )


@pytest.mark.parametrize("engine", FAST)
def test_added_tokens_that_are_not_special_are_found_as_hugging_face_finds_them(small: str, engine: EngineName) -> None:
    tokenizer = Tokenizer.from_str(small)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    texts = ["plain", "x<tool_call>y", "<tool_call>\n<|endoftext|>"]
    assert differing(tokenizer.to_str(), engine, texts) == []
    found = choose_engine(tokenizer.to_str(), engine).fast.encode(texts)[1]
    assert tokenizer.token_to_id("<tool_call>") in found


@pytest.mark.parametrize("engine", ["gigatoken", "tiktoken", "hf"])
def test_a_tokenizer_of_llama3s_kind_adds_no_begin_of_text_and_gets_what_it_lacks(
    small: str, engine: EngineName, tmp_path: Path
) -> None:
    """Its own special tokens behind the vocabulary, `ignore_merges`, and a post-processor that would put one in front."""
    tree = json.loads(small)
    ordinary = {name: at for at, name in enumerate(list(tree["model"]["vocab"])[3:])}
    tree["model"] |= {"vocab": ordinary, "ignore_merges": True}
    tree["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    assert begin is not None
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing("<|begin_of_text|> $A", None, [("<|begin_of_text|>", begin)]),
    ])  # fmt: skip
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path / "tokenizer.json")
    encoder = Encoder(read, engine)
    texts = ["<|begin_of_text|>x", "a b", "", *adversarial(200)]
    encoded = encoder.encode(texts)
    assert encoder.engine == engine and encoder.vocab_size == len(ordinary) + 6
    assert all(ids.max(initial=0) < len(ordinary) for ids in encoded)
    assert [read.decode(ids.tolist()) for ids in encoded] == texts
    assert encoder.special.end_of_text == begin + 3


def broken(small: str, monkeypatch: pytest.MonkeyPatch, fraction: float) -> Encoder:
    monkeypatch.setitem(token_engines.ENGINES, "gigatoken", Wrong)
    choose_engine.cache_clear()
    encoder = Encoder(Tokenizer.from_str(small), "gigatoken", fraction)
    choose_engine.cache_clear()
    return encoder


LONG = "def line(x):\n    return x\nand so on\n" * 2000


@pytest.mark.parametrize(
    "text", ["a quixotic text", f"{LONG}quixotic\n{LONG}", f"{LONG}quixotic", "é" * UNIT * 3 + " quixotic"]
)
def test_the_audit_finds_one_wrong_id(small: str, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    encoder = broken(small, monkeypatch, ALL)
    encoder.encode([LONG, "right"])
    with pytest.raises(DataError, match=r"engine gigatoken gives other ids .* for '.{1,90}'; set .*engine: hf"):
        encoder.encode(["right", text])


def test_the_default_audit_finds_an_engine_that_errs_often(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = broken(small, monkeypatch, AUDIT_FRACTION)
    with pytest.raises(DataError, match="other ids"):
        encoder.encode([f"{number} is quixotic" for number in range(5000)])
    broken(small, monkeypatch, 0.0).encode(["all is quixotic"])


def test_the_audit_of_long_and_of_short_documents_raises_no_false_alarm_and_does_not_depend_on_their_order(
    content: str,
) -> None:
    whole = "\n".join(unseen_text(5_000_000, step=5))[:2_500_000]
    for texts in ([whole], [text for text in whole.split("\n\n") if text]):
        audited = []
        for order in (1, -1):
            encoder = Encoder(Tokenizer.from_str(content), "gigatoken", 0.04)
            encoder.encode(texts[::order])
            audited.append(encoder.audit.audited_bytes)
        assert 0.025 < audited[0] / len(whole.encode()) < 0.055 and audited[0] == audited[1]


@pytest.mark.parametrize(("documents", "lines"), [(80_000, 2), (20_000, 60), (800, 20_000)])
def test_the_audit_takes_its_share_of_long_and_of_short_documents(small: str, documents: int, lines: int) -> None:
    audit = Encoder(Tokenizer.from_str(small), "gigatoken", 0.01).audit
    texts = (f"{number}\n" + "a line\n" * lines for number in range(documents))
    spans = [(len(text), sum(end - start for start, end in audit.pieces(text))) for text in texts]
    assert 0.8 < sum(span for _, span in spans) / sum(size for size, _ in spans) / 0.01 < 1.25
    assert max(span for _, span in spans) < max(0.03 * spans[0][0], 2 * UNIT)


def test_the_engine_changes_no_byte_and_a_folder_is_kept_when_another_is_named(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts", documents=6)
    for engine, fraction in (("gigatoken", 0.9), ("hf", 0.0)):
        run(data_settings(tmp_path / engine, texts, tokenizer={"engine": engine, "audit_fraction": fraction}))
    shards = [
        {path.name: path.read_bytes() for path in sorted((tmp_path / engine).rglob("*.tokens"))}
        for engine in ("gigatoken", "hf")
    ]
    assert shards[0] and shards[0] == shards[1]
    assert run(data_settings(tmp_path / "hf", texts, tokenizer={"engine": "tiktoken"})).reused


@pytest.mark.parametrize("engine", ["gigatoken", "tiktoken", "hf"])
def test_a_lone_surrogate_is_refused(small: str, engine: EngineName) -> None:
    with pytest.raises(DataError, match=r"lone surrogate '\\ud800'"):
        Encoder(Tokenizer.from_str(small), engine).encode(["fine", "not \ud800"])
