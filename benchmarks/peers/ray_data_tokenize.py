"""Ray Data with gigatoken: read_parquet -> map_batches -> write_parquet, tokens as one list column of uint16.

Ray is up and its workers are warm before the clock starts, as they are for the project.
"""

import argparse
import logging
import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import gigatoken
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from tree_clock import tell, timed

END_OF_TEXT = "<|endoftext|>"


class Tokenize:
    """An actor that encodes the batches it is given."""

    def __init__(self, tokenizer_file: str) -> None:
        self.tokenizer = gigatoken.Tokenizer(tokenizer_file)
        self.end = self.tokenizer.encode(END_OF_TEXT)[0]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Texts to tokens."""
        encoded = self.tokenizer.encode_batch(batch.column("text").to_pylist(), parallel=False).layout
        offsets, ids = np.asarray(encoded.offsets.data), np.asarray(encoded.content.data)
        tokens = np.insert(ids, offsets[1:], self.end).astype(np.uint16)
        ends = (offsets + np.arange(len(offsets))).astype(np.int32)
        return pa.table({"tokens": pa.ListArray.from_arrays(pa.array(ends), pa.array(tokens))})


def main() -> None:
    """Tokenizes a folder of parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compute", choices=("tasks", "actors"), default="tasks")
    arguments = parser.parse_args()
    ray.init(
        address="local", num_cpus=arguments.workers, num_gpus=0, include_dashboard=False, log_to_driver=False,
        object_store_memory=1 << 30, logging_level=logging.ERROR, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.range(arguments.workers).map_batches(lambda batch: batch).materialize()
    report: dict[str, object] = {}
    with timed(report):
        files = sorted(str(file) for file in arguments.corpus.glob("*.parquet"))
        ray.data.read_parquet(files, columns=["text"]).map_batches(
            Tokenize, batch_format="pyarrow", fn_constructor_args=(str(arguments.tokenizer),), batch_size=1024,
            compute=ray.data.ActorPoolStrategy(size=max(arguments.workers - 1, 1)),
        ).write_parquet(str(arguments.out))  # fmt: skip
    ray.shutdown()
    tables = [pq.read_table(file).column("tokens").combine_chunks() for file in arguments.out.glob("*.parquet")]
    report["tokens"] = sum(len(table.flatten()) for table in tables)
    report["documents"] = sum(map(len, tables))
    tell(report)


if __name__ == "__main__":
    main()
