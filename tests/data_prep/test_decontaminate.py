"""Decontamination: a shared n-gram is found wherever it stands, nothing else is, and unusable eval files are refused."""

import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from data_prep import shingles
from data_prep.decontaminate import Decontaminator, Hit
from pretrain.data.dedup_settings import DecontaminationSettings
from pretrain.errors import DataError
from tests.data_prep.corpora import WORDS, write_jsonl

PASSAGE = [f"{word}{at}" for at, word in enumerate(WORDS[:60])]


def decontaminator(path: Path, text: str | bytes, **changes: Any) -> Decontaminator:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Decontaminator(DecontaminationSettings.model_validate({"paths": [str(path)], **changes}))


def around(words: list[str], seed: int = 0) -> str:
    source = random.Random(seed)
    return " ".join([*source.choices(WORDS, k=50), *words, *source.choices(WORDS, k=50)])


def test_a_shared_ngram_is_found_at_every_place_and_one_word_less_is_not(tmp_path: Path) -> None:
    found = decontaminator(tmp_path / "eval.txt", " ".join(PASSAGE))
    for start in range(len(PASSAGE) - 12):
        shared = PASSAGE[start : start + 13]
        assert found.hit(around(shared, start)) == f"{tmp_path}/eval.txt: {' '.join(shared).lower()}"
        assert found.hit(around(shared[:12], start)) is None


def test_case_punctuation_and_spacing_do_not_hide_a_match(tmp_path: Path) -> None:
    found = decontaminator(tmp_path / "eval.txt", " ".join(PASSAGE))
    assert found.hit("X! " + " — ".join(word.upper() for word in PASSAGE[20:33]) + "?") is not None
    assert found.hit("\n".join(PASSAGE[20:33])) is not None


def test_scripts_without_spaces_match_by_characters(tmp_path: Path) -> None:
    text = "我们在这个数据集上评估模型的性能并报告结果"
    found = decontaminator(tmp_path / "eval.txt", text)
    assert found.hit("前面的话。" + text[3:17] + "。后面的话") is not None
    assert found.hit("前面的话。" + text[3:10] + "。后面的话") is None


def test_many_documents_at_once_give_what_each_gives_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = decontaminator(tmp_path / "eval.txt", " ".join(PASSAGE))
    texts = [around(PASSAGE[at : at + 10 + at % 5], at) if at % 3 else "" for at in range(45)]
    together = found.hits(texts)
    assert together == [found.hits([text])[0] for text in texts] and 0 < sum(hit is not None for hit in together) < 30
    monkeypatch.setattr(shingles, "BATCH_CHARACTERS", 1000)
    assert found.hits(texts) == together and found.hits([]) == []


def test_an_ngram_that_spans_two_documents_is_no_hit(tmp_path: Path) -> None:
    found = decontaminator(tmp_path / "eval.txt", " ".join(PASSAGE))
    assert found.hits([" ".join(PASSAGE[:7]), " ".join(PASSAGE[7:15])]) == [None, None]


def test_a_short_text_is_found_as_a_whole_and_a_very_short_one_is_counted(tmp_path: Path) -> None:
    short, very_short = PASSAGE[:9], PASSAGE[20:27]
    path = write_jsonl(tmp_path / "eval.jsonl", [{"text": " ".join(words)} for words in (short, very_short)])
    found = Decontaminator(DecontaminationSettings(paths=(str(path),)))
    assert found.hits([around(short), around(short[:8]), around(very_short), " ".join(short)]) == [
        (hit := Hit(str(path), " ".join(short).lower())),
        None,
        None,
        hit,
    ]
    assert found.too_short == 1
    assert Decontaminator(DecontaminationSettings(paths=(str(path),), shortest_words=7)).hit(around(very_short))


def test_a_document_that_ends_within_a_short_text_is_no_hit(tmp_path: Path) -> None:
    found = decontaminator(tmp_path / "eval.txt", " ".join(PASSAGE[:12]))
    assert found.hits([" ".join(PASSAGE[:11]), PASSAGE[11]]) == [None, None]


def test_a_collision_of_hashes_drops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = decontaminator(tmp_path / "eval.txt", " ".join(PASSAGE))
    windows = found._needles[0].hashes[0]
    monkeypatch.setattr(shingles.Words, "windows", lambda self, width: np.full(len(self.hashes), windows))
    assert found.hit(around([])) is None


def test_the_first_file_that_holds_the_words_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(around([]))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(" ".join(PASSAGE).encode()))
    frames = [zstandard.ZstdCompressor().compress(json.dumps({"q": {"a": text}}).encode() + b"\n") for text in
              (" ".join(PASSAGE), " ".join(WORDS[100:140]))]  # fmt: skip
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    paths = tuple(str(tmp_path / name) for name in ("a.txt", "b.txt.gz", "c.jsonl.zst"))
    found = Decontaminator(DecontaminationSettings(paths=paths, fields=("q.a",)))
    hits = found.hits([" ".join(PASSAGE[5:30]), " ".join(WORDS[100:140])])
    assert [hit and hit.file for hit in hits] == [paths[1], paths[2]]


def test_lines_can_be_texts_of_their_own(tmp_path: Path) -> None:
    text = " ".join(PASSAGE[:9]) + "\n\n" + " ".join(PASSAGE[9:18])
    assert decontaminator(tmp_path / "eval.txt", text).hit(around(PASSAGE[3:16])) is not None
    by_line = decontaminator(tmp_path / "eval.txt", text, text_unit="line")
    assert by_line.hit(around(PASSAGE[3:16])) is None and by_line.hit(around(PASSAGE[:9])) is not None


def test_the_identity_covers_content_and_settings_and_not_the_folder(tmp_path: Path) -> None:
    text = " ".join(PASSAGE)
    first = decontaminator(tmp_path / "eval.txt", text).identity
    (tmp_path / "other").mkdir()
    assert decontaminator(tmp_path / "other/eval.txt", text).identity == first
    changed = {decontaminator(tmp_path / "eval.txt", text, ngram_words=12).identity}
    changed.add(decontaminator(tmp_path / "eval.txt", text + ".").identity)
    assert first not in changed and len(changed) == 2


def test_a_pickled_one_finds_the_same(tmp_path: Path) -> None:
    found = decontaminator(tmp_path / "eval.txt", " ".join(PASSAGE))
    again = pickle.loads(pickle.dumps(found))
    assert again.identity == found.identity and again.hit(around(PASSAGE)) == found.hit(around(PASSAGE)) is not None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eval.txt", b" \n", "is empty"),
        ("eval.txt", b"too few words", "no text of decontamination.shortest_words=8"),
        ("eval.txt", b"\xff" * 20, "not UTF-8 at byte 0"),
        ("eval.csv", b"a,b", "no eval file that can be read"),
        ("eval.jsonl", b'{"text": "a"}\n{"text": ', r"eval.jsonl:2: not a row of JSON"),
        ("eval.jsonl", b'{"text": "a"}\n\n{"body": "a"}\n', r"eval.jsonl:3: no text in the column 'text'"),
        ("eval.txt.gz", b"plain", "cannot be read"),
        ("eval.txt.gz", gzip.compress(random.Random(0).randbytes(5000))[:-100], "cannot be read"),
        ("eval.txt.zst", zstandard.ZstdCompressor().compress(b"hello world " * 1000)[:-5], "cut short"),
    ],
)
def test_an_unusable_eval_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        decontaminator(tmp_path / name, content)
    assert name in str(refused.value)


def test_a_missing_eval_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        Decontaminator(DecontaminationSettings(paths=(str(tmp_path / "nowhere.txt"),)))


def test_rows_of_an_eval_file_are_read_as_those_of_a_corpus_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [json.dumps({"a.b": " ".join(PASSAGE)}), json.dumps({"a": {"b": "one two three"}})]
    (tmp_path / "eval.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(rows).encode())
    found = Decontaminator(DecontaminationSettings(paths=("~/eval.jsonl",), fields=("a.b",)))
    assert found.hit(around(PASSAGE)) is not None


def test_no_paths_are_refused() -> None:
    with pytest.raises(ValueError):
        DecontaminationSettings(paths=())
