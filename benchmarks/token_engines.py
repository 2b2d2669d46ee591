"""What encoding costs: MB of unseen text per CPU-second by each engine, and with the audit; ids compared with Hugging Face's.

    python -m benchmarks.token_engines           # 10 MB of the interpreter's own files, about two minutes
    python -m benchmarks.token_engines --folder TEXTS  # of any folder of UTF-8 files

One process, CPU clock, interleaved: in a round every contestant encodes all of the text, with an engine made anew (gigatoken
keeps the words that it has seen: a second pass over the same text would be faster than any corpus is). Making an engine is
timed apart. Prints a JSON object: medians over the rounds, and the median of the rounds' ratios to the same engine without
audit.
"""

import argparse
import json
import os
import statistics
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.token_engines import HuggingFace, choose_engine
from data_prep.tokenize import Encoder, train_tokenizer
from pretrain.data.tokenizer_settings import EngineName, TokenizerSettings
from tests.data_prep.adversarial import adversarial

BATCH_BYTES = 1 << 20
"""Text handed over at once, as in preparation."""
CONTESTANTS: tuple[tuple[EngineName, float], ...] = (
    ("hf", 0.0),
    ("tiktoken", 0.0),
    ("gigatoken", 0.0),
    ("gigatoken", 0.001),
    ("gigatoken", 0.01),
)
"""(engine, audit_fraction)."""


def main() -> None:
    """Measures both patterns and prints the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    known, unseen = _texts(arguments.folder, int(arguments.megabytes * 1e6))
    results = {}
    for pattern in ("gpt2", "llama3"):
        settings = TokenizerSettings(vocab_size=arguments.vocab_size, pattern=pattern)
        content = train_tokenizer(known, settings).to_str()
        results[pattern] = {
            "texts_with_other_ids": _differing(content, unseen),
            "adversarial_strings_with_other_ids": _differing(content, list(adversarial(5000))),
            **_measure(content, unseen, arguments.rounds),
        }
    size = sum(len(text.encode()) for text in unseen)
    print(
        json.dumps({"documents": len(unseen), "bytes": size, "rounds": arguments.rounds, "patterns": results}, indent=1)
    )


def _texts(folder: Path, size: int) -> tuple[list[str], list[str]]:
    """Texts to train on and others to measure on, every second file each."""
    sides: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    files = (p for p in sorted(folder.rglob("*")) if p.suffix in (".py", ".txt", ".c", ".rst", ".md"))
    for number, path in enumerate(files):
        side = number % 2
        if sizes[side] < size and path.is_file():
            content = path.read_bytes()
            sides[side].append(content.decode(errors="replace"))
            sizes[side] += len(content)
    return sides


def _differing(content: str, texts: list[str]) -> dict[str, int]:
    """How many texts each engine encodes otherwise than Hugging Face."""
    right = HuggingFace(content).encode(texts)
    names: tuple[EngineName, ...] = ("gigatoken", "tiktoken")
    given = {name: choose_engine(content, name).fast.encode(texts) for name in names}
    return {name: sum(not np.array_equal(a, b) for a, b in zip(right, ids, strict=True)) for name, ids in given.items()}


def _measure(content: str, texts: list[str], rounds: int) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = Tokenizer.from_str(content)
    seconds: dict[tuple[EngineName, float], list[float]] = {who: [] for who in CONTESTANTS}
    made: dict[tuple[EngineName, float], list[float]] = {who: [] for who in CONTESTANTS}
    audited: dict[tuple[EngineName, float], float] = {}
    for number in range(rounds):
        for at in range(len(CONTESTANTS)):
            who = CONTESTANTS[(at + number) % len(CONTESTANTS)]
            choose_engine.cache_clear()
            start = time.process_time()
            encoder = Encoder(tokenizer, *who)
            ready = time.process_time()
            for batch in _batches(texts):
                encoder.encode(batch)
            seconds[who].append(time.process_time() - ready)
            made[who].append(ready - start)
            audited[who] = encoder.audit.audited_bytes / size / 1e6
    found = {}
    for name, fraction in CONTESTANTS:
        who = (name, fraction)
        ratios = [own / plain for own, plain in zip(seconds[who], seconds[name, 0.0], strict=True)]
        found[f"{name}, audit {fraction:g}"] = {
            "mb_per_cpu_s": round(size / statistics.median(seconds[who]), 1),
            "cost_of_audit": round(statistics.median(ratios) - 1, 3),
            "audited_share": round(audited[who], 5),
            "making_s": round(statistics.median(made[who]), 2),
        }
    return found


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


if __name__ == "__main__":
    main()
