"""Opens a set of ten trillion tokens and delivers its first batch: seconds, and memory of the index.

    python -m benchmarks.open_ten_trillion --work FOLDER

The set is real to its reader: 37,000 shards of 270 million tokens each, all of them links to one file of 540 MB. Opening reads
the manifest, builds the plan, and maps and checks the shards of the first batch. Each round is a process of its own, so nothing
is cached but the file's pages.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

SHARDS, DOCUMENTS, LENGTH = 37_000, 270_000, 1_001
SEQUENCE_LENGTH, BATCH = 2048, 64


def make(folder: Path) -> None:
    """Writes the set once."""
    from pretrain.data.manifest import (
        MANIFEST_NAME,
        TOKENIZER_NAME,
        Manifest,
        ShardRecord,
        SpecialTokens,
        SplitRecord,
        write_manifest,
    )
    from pretrain.data.token_shards import Origin, write_shard
    from pretrain.files import hash_bytes

    if (folder / MANIFEST_NAME).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = b"{}"
    (folder / TOKENIZER_NAME).write_bytes(tokenizer)
    document = np.arange(LENGTH, dtype="<u2")[::-1]  # ends with token 0, the end of text
    origin = Origin("22" * 16, hash_bytes(tokenizer), "33" * 16)
    lengths = np.full(DOCUMENTS, LENGTH)
    one = write_shard(
        folder, "train/000000-000.tokens", np.tile(document, DOCUMENTS), lengths, text_bytes=0, origin=origin
    )
    records = [one]
    for number in range(1, SHARDS):
        name = f"train/{number:06d}-000.tokens"
        os.link(folder / one.file, folder / name)
        records.append(ShardRecord(name, one.tokens, one.documents, 0, one.file_bytes, one.hash))
    splits = {"train": SplitRecord.of(records), "validation": SplitRecord.of(records[:1])}
    write_manifest(folder, Manifest("text", 2000, origin.tokenizer, SpecialTokens(0, 1998, 1999), splits))  # type: ignore[arg-type]


def measure(folder: Path, *, memory: str) -> dict[str, float]:
    """One round: from opening to the first batch in hand."""
    from pretrain.data.batches import training_batches
    from pretrain.data.manifest import read_manifest
    from pretrain.data.plan import build_plan
    from pretrain.data.settings import DataSettings

    data = DataSettings.model_validate({"dir": str(folder), "sequence_length": SEQUENCE_LENGTH})
    if memory == "traced":
        tracemalloc.start()
        plan = build_plan(data, read_manifest(folder), 1, {})
        plan.samples(0, BATCH)
        return {"index_mb": tracemalloc.get_traced_memory()[1] / 1e6}
    cpu, wall = time.process_time(), time.perf_counter()
    with training_batches(
        data, seed=1, global_batch_sequences=BATCH, micro_batch_sequences=BATCH, data_rank=0, data_size=1, first_step=0
    ) as batches:
        next(batches)
        return {"cpu_ms": 1e3 * (time.process_time() - cpu), "wall_ms": 1e3 * (time.perf_counter() - wall)}


def main() -> None:
    """Prints medians over the rounds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder with a GB of room")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", choices=("timed", "traced"), help="one round, in this process")
    arguments = parser.parse_args()
    folder = arguments.work / "ten-trillion"
    if arguments.one:
        print(json.dumps(measure(folder, memory=arguments.one)))
        return
    make(folder)
    rounds = [_round(arguments.work, "timed") for _ in range(arguments.rounds)]
    found = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print(json.dumps({"tokens": SHARDS * DOCUMENTS * LENGTH, **found, **_round(arguments.work, "traced")}))


def _round(work: Path, kind: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.open_ten_trillion", "--work", str(work), "--one", kind]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
