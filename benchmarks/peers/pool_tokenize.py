"""Plain multiprocessing with gigatoken: a pool of forked workers, one file a task, raw uint16 tokens and document lengths.

The least that does the work: no checksums, no manifest, no fsync, no restart.
"""

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from engine import encode
from tree_clock import tell, timed


def tokenize(task: tuple[Path, Path, Path]) -> tuple[int, int]:
    """Writes one file's tokens; returns how many tokens and documents."""
    source, target, tokenizer_file = task
    pieces, lengths = [], []
    for batch in pq.ParquetFile(source).iter_batches(1024, columns=["text"]):
        tokens, documents = encode(str(tokenizer_file), batch.column(0).to_pylist())
        pieces.append(tokens)
        lengths.append(documents)
    tokens, documents = np.concatenate(pieces), np.concatenate(lengths)
    tokens.tofile(target.with_suffix(".tokens"))
    np.save(target.with_suffix(".lengths.npy"), documents)
    return len(tokens), len(documents)


def main() -> None:
    """Tokenizes a folder of parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    files = sorted(arguments.corpus.glob("*.parquet"))
    tasks = [(file, arguments.out / file.stem, arguments.tokenizer) for file in files]
    report: dict[str, object] = {}
    with timed(report), multiprocessing.get_context("fork").Pool(arguments.workers) as pool:
        counts = pool.map(tokenize, tasks, chunksize=1)
        pool.close()
        pool.join()  # so that the workers' time is the parent's
    report["tokens"], report["documents"] = map(sum, zip(*counts, strict=True))
    tell(report)


if __name__ == "__main__":
    main()
