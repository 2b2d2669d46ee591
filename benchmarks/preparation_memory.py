"""Resident memory of preparation as its input grows: peak of the driver, and of each worker process.

    python -m benchmarks.preparation_memory [--corpus FOLDER] [--sizes 0.1 0.3 1.0] [--backend local|ray] [--workers 2]
                                            [--layout pieces|one] [--method exact|none] [--longest MB]

The corpus is a folder of source text and documentation (Debian's `linux-source-6.1`, unpacked, has 1.2 GB), of which a size
takes the first files in the order of a hash of their names: each size holds the smaller ones. Each file is a document, found
by listing the folder. A worker's peak follows its longest document (the kernel has headers of 16 MB), and of more files the
longest is longer: `--longest 2` leaves out files of over 2 MB, so that what is left is growth with the size of the corpus.

Without a folder, text is that of the interpreter's own standard library, cut into documents and changed at random places, so
that none is equal to another; written as .jsonl, in `pieces` (ranges of 8 MB) or as `one` compressed file, which is a single
range of any size. The tokenizer is given: training one takes the same few hundred MB for every corpus, and would hide what
grows. Each size runs in processes of its own.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import random
import resource
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.processor import cpu_name, public_command
from benchmarks.resident_memory import Peak, peaks_of

DOCUMENT_CHARACTERS = 4000
SEED = 1
SUFFIXES = (".c", ".h", ".S", ".rst", ".txt", ".py", ".md", ".yaml", ".dts", ".dtsi", ".json", ".sh")
TRAINED_FILES = 1000
WORKER = ("spawn_main", "ray::")
"""In the command of a process that does tasks."""


def main() -> None:
    """Runs the sizes one after another, prints a line for each, and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of text files; without it, text is made")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.3, 1.0], help="GB of text")
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--layout", choices=["pieces", "one"], default="pieces", help="of text that is made")
    parser.add_argument("--method", choices=["exact", "none"], default="exact", help="of deduplication")
    parser.add_argument("--longest", type=float, default=float("inf"), help="MB of a file of the corpus")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.backend, arguments.workers, arguments.method)))
        return
    if arguments.corpus:
        arguments.corpus = arguments.corpus.resolve(strict=True)
    with TemporaryDirectory() as folder:
        rounds = list(all_sizes(Path(folder), arguments))
    keep(arguments, rounds)


def all_sizes(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What was measured at each size."""
    tokenizer = trained(arguments.corpus)
    for gigabytes in arguments.sizes:
        place = folder / f"{gigabytes}"
        (place / "corpus").mkdir(parents=True)
        (place / "tokenizer.json").write_text(tokenizer)
        if arguments.corpus:
            link(arguments.corpus, place / "corpus", int(gigabytes * 1e9), arguments.longest * 1e6)
        else:
            name = "rows.jsonl.gz" if arguments.layout == "one" else "rows.jsonl"
            write(place / "corpus" / name, int(gigabytes * 1e9))
        told = run(place, arguments)
        print(json.dumps(told), flush=True)
        yield told


def trained(corpus: Path | None) -> str:
    """A tokenizer.json of 8,192 tokens."""
    from data_prep.tokenize import train_tokenizer
    from pretrain.data.tokenizer_settings import TokenizerSettings

    some = texts(2 << 20) if corpus is None else _read(islice(files_of(corpus), TRAINED_FILES))
    return train_tokenizer(some, TokenizerSettings(vocab_size=8192)).to_str()


def _read(paths: Iterator[Path]) -> Iterator[str]:
    return (path.read_text(encoding="utf-8", errors="ignore") for path in paths)


def files_of(corpus: Path) -> Iterator[Path]:
    """The text files of a folder, by a hash of their names."""
    found = [path for path in corpus.rglob("*") if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()]
    yield from sorted(found, key=lambda path: hashlib.sha256(os.fsencode(path.relative_to(corpus))).digest())


def link(corpus: Path, place: Path, size: int, longest: float) -> None:
    """Links to as many files of a folder, of `longest` bytes at most, as make a size. Raises SystemExit where it has fewer."""
    for path in files_of(corpus):
        if path.stat().st_size > longest:
            continue
        target = place / path.relative_to(corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
        size -= path.stat().st_size
        if size <= 0:
            return
    raise SystemExit(f"--sizes: {corpus} holds {size / 1e9:.2f} GB less of {', '.join(SUFFIXES)}")


def texts(size: int) -> Iterator[str]:
    """Documents of about so many bytes in all, no two equal."""
    source = random.Random(SEED)
    library = [
        text[at : at + DOCUMENT_CHARACTERS]
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        for text in [path.read_text(encoding="utf-8", errors="ignore")]
        for at in range(0, len(text), DOCUMENT_CHARACTERS)
    ]
    while size > 0:
        words = source.choice(library).split(" ")
        for _ in range(4):
            words[source.randrange(len(words))] = f"{source.getrandbits(40):x}"
        text = " ".join(words)
        size -= len(text)
        yield text


def write(path: Path, size: int) -> None:
    """The corpus that is made."""
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as file:
        for text in texts(size):
            file.write(json.dumps({"text": text}).encode() + b"\n")


def run(place: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepares in a process of its own; returns what was measured of it and of its workers."""
    command = [sys.executable, "-m", "benchmarks.preparation_memory", "--measure", str(place)]
    command += ["--workers", str(arguments.workers), "--method", arguments.method, "--backend", arguments.backend]
    printed, driver, others = peaks_of(command)
    workers = [peak for peak in others if _is_worker(peak)]
    return {
        **json.loads(printed),
        "driver_mib": round(driver.mib, 1),
        "workers_mib": sorted((round(peak.mib, 1) for peak in workers), reverse=True),
    }


def _is_worker(peak: Peak) -> bool:
    return any(word in peak.command for word in WORKER)


def measure(place: Path, backend: Any, workers: int, method: str) -> dict[str, Any]:
    """Prepares a corpus."""
    from rich.console import Console

    from data_prep.pipeline import prepare_data
    from pretrain.data.settings import DataSettings

    source = "jsonl" if list((place / "corpus").glob("rows.*")) else "text"
    prepare = {
        "corpus": {"source": source, "paths": [str(place / "corpus")]},
        "tokenizer": {"path": str(place / "tokenizer.json")},
        "dedup": {"method": method},
    }
    data = DataSettings.model_validate({"dir": str(place / "data"), "sequence_length": 1024, "prepare": prepare})
    started = time.monotonic()
    report = prepare_data(data, backend, workers, Console(quiet=True))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "text_mb": round(report.text_bytes / 1e6, 1),
        "documents": report.documents,
        "wall_s": round(time.monotonic() - started, 1),
        "cpu_s": round(sum(each.ru_utime + each.ru_stime for each in usage), 1),
    }


def keep(arguments: argparse.Namespace, rounds: Sequence[dict[str, Any]]) -> None:
    """Writes the results file."""
    now = datetime.now(UTC)
    libraries = ("gigatoken", "numpy", "ray", "tokenizers")
    report = {
        "benchmark": "preparation_memory",
        "date": now.isoformat(timespec="seconds"),
        "command": public_command("python -m benchmarks.preparation_memory", sys.argv[1:]),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
        "results": rounds,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"preparation_memory-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path.name} in {arguments.out.name}/")


if __name__ == "__main__":
    main()
