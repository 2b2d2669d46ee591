"""Ray Data with gigatoken: read_parquet -> map_batches -> write_parquet, tokens as one Arrow column of lists of uint16.

Ray Data fuses the steps into tasks, so that no text passes the object store. A pool of actors, or batches of Ray's default form,
cost the same CPU time or more. Ray is up and its workers are warm before the clock starts, as they are for the project.
"""

import argparse
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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


def encoded(batch: pa.Table, tokenizer_file: str) -> pa.Table:
    """Texts to tokens."""
    tokens, lengths = encode(tokenizer_file, batch.column("text").to_pylist())
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.table({"tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens))})


def warmed(batch: Any) -> Any:
    """Makes a worker import the engine before the clock starts, as for the others."""
    import engine  # noqa: F401

    return batch


def main() -> None:
    """Tokenizes a folder of parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    report: dict[str, object] = {}
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local", num_cpus=arguments.workers, num_gpus=0, include_dashboard=False, log_to_driver=False,
            object_store_memory=1 << 30, logging_level=logging.ERROR, _node_ip_address="127.0.0.1", _temp_dir=folder,
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.range(4 * arguments.workers).map_batches(warmed, batch_size=1).materialize()
        with timed(report):
            texts = ray.data.read_parquet(str(arguments.corpus)).select_columns("text")
            tokens = texts.map_batches(
                encoded, batch_format="pyarrow", batch_size=1024, fn_args=(str(arguments.tokenizer),)
            )
            tokens.write_parquet(str(arguments.out))
        ray.shutdown()
    written = [pq.read_table(file).column("tokens").combine_chunks() for file in arguments.out.glob("*.parquet")]
    report["tokens"] = sum(len(column.flatten()) for column in written)
    report["documents"] = sum(map(len, written))
    tell(report)


if __name__ == "__main__":
    main()
