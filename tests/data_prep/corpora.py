"""Small corpora for tests of preparation, and what is left of a data folder to compare."""

import gettext
import io
import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.pipeline import Backend, prepare_data
from data_prep.report import PrepareReport
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.settings import DataSettings

WORDS = [
    "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyzäöü", k=random.Random(-seed).randint(2, 9)))
    for seed in range(300)
]


def sentence(source: random.Random, words: int = 12) -> str:
    """Some words, with a case and a stop."""
    return " ".join(source.choices(WORDS, k=words)).capitalize() + "."


def text(seed: int, sentences: int = 20) -> str:
    """A document."""
    source = random.Random(seed)
    return "\n".join(sentence(source) for _ in range(sentences)) + "\n"


def write_texts(folder: Path, documents: int = 24) -> Path:
    """A folder of text files."""
    folder.mkdir(parents=True)
    for number in range(documents):
        (folder / f"{number:03d}.txt").write_text(text(number), encoding="utf-8")
    return folder


def data_settings(folder: Path, corpus: Path | Sequence[Path], source: str = "text", **changes: Any) -> DataSettings:
    """Settings of a preparation of several small tasks; `changes` are of PrepareSettings, CorpusSettings or DataSettings."""
    paths = [corpus] if isinstance(corpus, Path) else corpus
    corpus_changes = {name: changes.pop(name) for name in list(changes) if name in CorpusSettings.model_fields}
    data_changes = {name: changes.pop(name) for name in list(changes) if name in DataSettings.model_fields}
    prepare = {
        "corpus": {"source": source, "paths": [str(path) for path in paths], **corpus_changes},
        "tokenizer": {"vocab_size": 400},
        "validation_fraction": 0.2,
        "task_bytes": 8_000,
        **changes,
    }
    return DataSettings.model_validate({"dir": str(folder), "sequence_length": 32, "prepare": prepare, **data_changes})


def run(data: DataSettings, backend: Backend = "local", workers: int | None = 1) -> PrepareReport:
    """Prepares without a word."""
    return prepare_data(data, backend, workers, quiet())


def quiet() -> Console:
    """A console that shows nothing."""
    return Console(file=io.StringIO())


def output(folder: Path) -> dict[str, bytes]:
    """Every file that a reader of the folder can see."""
    names = ["manifest.json", "tokenizer.json", "token_bytes.bin", "quarantine.jsonl"]
    shards = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.tokens"))
    return {name: (folder / name).read_bytes() for name in [*names, *shards]}


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """A .jsonl file; a row that is bytes is written as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def catalogue(messages: Mapping[str, str], order: str = "<") -> bytes:
    """A .mo file: header, two tables, strings that end with NUL."""
    header = {"": "Content-Type: text/plain; charset=UTF-8\n"}
    entries = sorted((key.encode(), value.encode()) for key, value in {**header, **messages}.items())
    tables = 28
    strings = tables + 16 * len(entries)
    originals, translations, content = [], [], b""
    for table, side in ((originals, 0), (translations, 1)):
        for entry in entries:
            table += [len(entry[side]), strings + len(content)]
            content += entry[side] + b"\0"
    numbers = [0x950412DE, 0, len(entries), tables, tables + 8 * len(entries), 0, 0, *originals, *translations]
    made = struct.pack(f"{order}{len(numbers)}I", *numbers) + content
    gettext.GNUTranslations(io.BytesIO(made))  # the reference reader takes it
    return made
