"""Resident memory of preparation as its input grows: peak of the driver, and of its largest worker process.

    python -m benchmarks.preparation_memory [--sizes 0.1 1.0] [--workers 1] [--layout pieces|one] [--method exact|none]

Text is that of the interpreter's own standard library, cut into documents and changed at random places, so that none is equal to
another; written as .jsonl, in `pieces` (ranges of 8 MB) or as `one` compressed file, which is a single range of any size. The
tokenizer is given: training one takes the same few hundred MB for every corpus, and would hide what grows. Each size runs in a
process of its own, whose peak the kernel keeps (`ru_maxrss`).
"""

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from data_prep.pipeline import prepare_data
from data_prep.tokenize import train_tokenizer
from pretrain.data.settings import DataSettings
from pretrain.data.tokenizer_settings import TokenizerSettings

DOCUMENT_CHARACTERS = 4000
SEED = 1


def main() -> None:
    """Runs the sizes one after another and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 1.0], help="GB of text")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--layout", choices=["pieces", "one"], default="pieces")
    parser.add_argument("--method", choices=["exact", "none"], default="exact")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.workers, arguments.method)))
        return
    with TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts(2 << 20), TokenizerSettings(vocab_size=8192)).to_str()
        for gigabytes in arguments.sizes:
            place = Path(folder) / f"{gigabytes}"
            place.mkdir()
            (place / "tokenizer.json").write_text(tokenizer)
            write(place / ("rows.jsonl.gz" if arguments.layout == "one" else "rows.jsonl"), int(gigabytes * 1e9))
            told = run(place, arguments.workers, arguments.method)
            print(
                f"{gigabytes:g} GB, {arguments.layout}, {arguments.method}, {arguments.workers} workers: {told}",
                flush=True,
            )


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
    """The corpus."""
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as file:
        for text in texts(size):
            file.write(json.dumps({"text": text}).encode() + b"\n")


def run(place: Path, workers: int, method: str) -> str:
    """Prepares in a process of its own; returns what it measured, in words."""
    command = [sys.executable, "-m", "benchmarks.preparation_memory", "--measure", str(place)]
    command += ["--workers", str(workers), "--method", method]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return (
        f"driver {told['driver_mib']:.0f} MiB (before {told['before_mib']:.0f}), largest worker {told['worker_mib']:.0f} MiB; "
        f"{told['text_mb']:.0f} MB of text in {told['seconds']:.0f} s, {told['cpu_seconds']:.1f} CPU-s"
    )


def measure(place: Path, workers: int, method: str) -> dict[str, float]:
    """Prepares a corpus."""
    paths = [str(path) for path in place.glob("rows.*")]
    prepare = {
        "corpus": {"source": "jsonl", "paths": paths},
        "tokenizer": {"path": str(place / "tokenizer.json")},
        "dedup": {"method": method},
    }
    data = DataSettings.model_validate({"dir": str(place / "data"), "sequence_length": 1024, "prepare": prepare})
    before = _peak_mib(resource.RUSAGE_SELF)
    started = time.monotonic()
    report = prepare_data(data, "local", workers, Console(quiet=True))
    seconds = time.monotonic() - started
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "before_mib": before,
        "driver_mib": _peak_mib(resource.RUSAGE_SELF),
        "worker_mib": _peak_mib(resource.RUSAGE_CHILDREN) if workers > 1 else 0.0,
        "text_mb": report.text_bytes / 1e6,
        "seconds": seconds,
        "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in usage),
    }


def _peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


if __name__ == "__main__":
    main()
