"""The data path against its peers: CPU time of tokenizing into shards, and of delivering batches.

    python -m benchmarks.data --setup                     # the peers' environments, once
    python -m benchmarks.data                             # all, on 180 MB of real text
    python -m benchmarks.data --megabytes 10 --rounds 1   # a look

See benchmarks/README.md for what is made equal. Everything big lies in the folder of --work: packages, corpus, environments.
"""

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.data_contest import make_stream, reading, summary, table, tokenizing
from benchmarks.data_contestants import (
    READER_GOALS,
    READERS,
    TOKENIZER_GOALS,
    TOKENIZERS,
    present,
    set_up,
)
from benchmarks.data_mix import SOURCES, build_mix
from benchmarks.processor import cpu_name, load, public_command
from data_prep.tokenize import train_tokenizer
from pretrain.data.tokenizer_settings import TokenizerSettings

TRAINING_BYTES = 32_000_000
VERSIONS = ("ray", "pyarrow", "gigatoken", "tokenizers", "numpy", "torch")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=(__doc__ or "").splitlines()[0])
    names = [contestant.name for contestant in (*TOKENIZERS, *READERS)]
    parser.add_argument("--setup", action="store_true", help="make the peers' environments, and end")
    parser.add_argument(
        "--work", type=Path, default=Path(".data/benchmark"), help="folder of all that is fetched and made"
    )
    parser.add_argument("--megabytes", type=float, default=180.0, help="text of the corpus")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="SOURCE")
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=3, help="each contestant runs once a round")
    parser.add_argument("--workers", type=int, default=2, help="processes that tokenize")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64, help="sequences of a delivered batch")
    parser.add_argument("--cpu-s", type=float, default=3.0, help="CPU time that each reader spends in a round")
    out = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results file")
    return parser.parse_args(arguments)


def main() -> None:
    """Builds what is missing, measures, prints the tables and writes the results file after each part."""
    arguments, console = parse(), Console(width=120)
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.setup:
        return set_up(arguments.work, console)
    corpus = arguments.work / f"corpus-{arguments.megabytes:g}-{len(arguments.sources)}"
    mix = build_mix(corpus, arguments.megabytes, tuple(arguments.sources), console)
    _make_tokenizer(corpus, arguments.vocab_size, console)
    results = _described(mix)
    measured = _tokenizing(arguments, corpus, mix, console)
    if measured:
        results["results"]["tokenizing"] = measured
        _write(arguments.out, results, console)
    measured = _reading(arguments, corpus, console)
    if measured:
        results["results"]["reading"] = measured
        _write(arguments.out, results, console)
    return None


def _make_tokenizer(corpus: Path, vocab_size: int, console: Console) -> None:
    """Trains the tokenizer once, on the first of the corpus' documents."""
    path = corpus / "tokenizer.json"
    if path.exists():
        return
    console.print("training the tokenizer")
    texts: list[str] = []
    size = 0
    for file in sorted(corpus.glob("*.parquet")):
        for text in pq.read_table(file, columns=["text"]).column(0).to_pylist():
            if size < TRAINING_BYTES:
                texts.append(text)
                size += len(text)
    path.write_text(train_tokenizer(texts, TokenizerSettings(vocab_size=vocab_size, pattern="llama3")).to_str())


def _tokenizing(arguments: argparse.Namespace, corpus: Path, mix: dict[str, Any], console: Console) -> dict[str, Any]:
    chosen = [contestant for contestant in TOKENIZERS if contestant.name in arguments.contestants]
    chosen = present(chosen, arguments.work, console)
    if not chosen:
        return {}
    before = load()
    rounds = tokenizing(chosen, corpus, arguments.work, arguments.workers, arguments.rounds, console)
    megabytes = mix["bytes"] / 1e6
    found = summary(rounds, TOKENIZER_GOALS, {name: [megabytes] * len(rows) for name, rows in rounds.items()})
    title = f"tokenizing {megabytes:.0f} MB, {mix['documents']:,} documents, {arguments.workers} workers, CPU time"
    console.print(table(title, "MB", found, chosen, "whole command"))
    return {"unit": "MB", "workers": arguments.workers, "load_before": before, "load_after": load(), **found}


def _reading(arguments: argparse.Namespace, corpus: Path, console: Console) -> dict[str, Any]:
    chosen = [contestant for contestant in READERS if contestant.name in arguments.contestants]
    chosen = present(chosen, arguments.work, console)
    if not chosen:
        return {}
    folder, before = arguments.work / "streams", load()
    tokens = make_stream(corpus, folder, arguments.work, arguments.workers, console)
    options = ("sequence_length", "batch", "cpu_s")
    passed = [text for name in options for text in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    rounds = reading(chosen, folder, arguments.work, passed, arguments.rounds, console)
    units = {name: [row["tokens"] / 1e6 for row in rows] for name, rows in rounds.items()}
    found = summary(rounds, READER_GOALS, units)
    title = (
        f"batches of {arguments.batch} x {arguments.sequence_length} from {tokens / 1e6:.1f} million tokens, CPU time"
    )
    console.print(table(title, "million tokens", found, chosen, ""))
    settings = {name: getattr(arguments, name) for name in options}
    return {
        "unit": "million tokens",
        "tokens": tokens,
        **settings,
        "load_before": before,
        "load_after": load(),
        **found,
    }


def _described(mix: dict[str, Any]) -> dict[str, Any]:
    """The results file without its results."""
    return {
        "benchmark": "data",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": public_command("python -m benchmarks.data", sys.argv[1:]),
        "machine": {
            "cpu": cpu_name(),
            "system": platform.system(),
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONS},
        },
        "peers": _peer_versions(),
        "corpus": mix,
        "results": {},
    }


def _peer_versions() -> dict[str, str]:
    """Of what the fixed lists install."""
    wanted = ("datatrove", "megatron-core", "mosaicml-streaming", "litdata")
    lines = [
        line
        for file in sorted((Path(__file__).parent / "peers").glob("*.txt"))
        for line in file.read_text().splitlines()
    ]
    pairs = [line.partition("==") for line in lines]
    return {name: number for name, _, number in pairs if name in wanted}


def _write(out: Path, results: dict[str, Any], console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.fromisoformat(results["date"])
    path = out / f"data-{stamp:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written to {path.name} in {out.name}/")


if __name__ == "__main__":
    main()
