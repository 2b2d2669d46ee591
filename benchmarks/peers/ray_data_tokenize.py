"""Ray Data with gigatoken: read_parquet -> map_batches -> write_parquet, tokens as one column of uint16 arrays.

Two forms of a batch: `columns`, Ray's default, and `arrow`, the same by hand for speed. Ray Data fuses the steps into tasks, so that
no text passes the object store (a pool of actors costs the same CPU time). Ray is up and its workers are warm before the clock
starts, as they are for the project.
"""

import argparse
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # its servers listen on this machine's own address alone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from engine import encode
from tree_clock import tell, timed


def columns(batch: dict[str, np.ndarray], tokenizer_file: str) -> dict[str, list[np.ndarray]]:
    """Texts to tokens, a list of arrays: Ray's default form of a batch."""
    tokens, lengths = encode(tokenizer_file, batch["text"].tolist())
    return {"tokens": np.split(tokens, np.cumsum(lengths)[:-1])}


def arrow(batch: pa.Table, tokenizer_file: str) -> pa.Table:
    """Texts to tokens, an Arrow column made by hand, without a copy."""
    tokens, lengths = encode(tokenizer_file, batch.column("text").to_pylist())
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.table({"tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens))})


def main() -> None:
    """Tokenizes a folder of parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--form", choices=("columns", "arrow"), default="columns")
    arguments = parser.parse_args()
    function, form = (arrow, "pyarrow") if arguments.form == "arrow" else (columns, "numpy")
    report: dict[str, object] = {}
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local", num_cpus=arguments.workers, num_gpus=0, include_dashboard=False, log_to_driver=False,
            object_store_memory=1 << 30, logging_level=logging.ERROR, _node_ip_address="127.0.0.1", _temp_dir=folder,
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.range(4 * arguments.workers).map_batches(lambda batch: batch, batch_size=1).materialize()
        with timed(report):
            texts = ray.data.read_parquet(str(arguments.corpus)).select_columns("text")
            tokens = texts.map_batches(
                function, batch_format=form, batch_size=1024, fn_args=(str(arguments.tokenizer),)
            )
            tokens.write_parquet(str(arguments.out))
        ray.shutdown()
    written = [pq.read_table(file).column("tokens") for file in arguments.out.glob("*.parquet")]
    report["tokens"] = sum(len(document) for column in written for document in column.to_numpy())
    report["documents"] = sum(map(len, written))
    tell(report)


if __name__ == "__main__":
    main()
