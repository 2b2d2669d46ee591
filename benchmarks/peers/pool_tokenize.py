"""Plain multiprocessing with gigatoken: a pool of forked workers, one file a task, raw uint16 tokens and document lengths.

The least that does the work: no checksums, no manifest, no fsync, no restart.
"""

import argparse
import multiprocessing
from pathlib import Path

import gigatoken
import numpy as np
import pyarrow.parquet as pq
from tree_clock import tell, timed

END_OF_TEXT = "<|endoftext|>"


def tokenize(task: tuple[Path, Path, Path]) -> tuple[int, int]:
    """Writes one file's tokens; returns how many tokens and documents."""
    source, target, tokenizer_file = task
    tokenizer = gigatoken.Tokenizer(tokenizer_file)
    end = tokenizer.encode(END_OF_TEXT)[0]
    pieces, lengths = [], []
    for batch in pq.ParquetFile(source).iter_batches(1024, columns=["text"]):
        encoded = tokenizer.encode_batch(batch.column(0).to_pylist(), parallel=False).layout
        offsets, ids = np.asarray(encoded.offsets.data), np.asarray(encoded.content.data)
        pieces.append(np.insert(ids, offsets[1:], end).astype(np.uint16))
        lengths.append(np.diff(offsets) + 1)
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
