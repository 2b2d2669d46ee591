"""The project's own part in `data.py`, a process for each measurement: `tokenize` prepares a corpus, `batches` delivers batches.

Ray is up and its workers have imported what they need before the clock starts, as for Ray Data; whatever Ray's own servers spend
afterwards counts.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.peers.tree_clock import tell, timed
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.settings import DataSettings

IGNORED = -100


def main() -> None:
    """`tokenize` or `batches`, with the arguments that peers take too."""
    {"tokenize": tokenize, "batches": batches}[sys.argv.pop(1)]()


def tokenize() -> None:
    """Prepares a folder of parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", choices=("ray", "local"), default="ray")
    arguments = parser.parse_args()
    from data_prep.pipeline import prepare_data
    from pretrain.data.token_shards import read_manifest

    data, console = _preparation(arguments), Console(file=sys.stderr)
    report: dict[str, Any] = {}
    if arguments.backend == "local":
        with timed(report):
            prepare_data(data, "local", arguments.workers, console)
    else:
        from data_prep.ray_tasks import RayTasks

        with RayTasks(arguments.workers) as cluster:
            list(cluster.run(_warm, range(4 * arguments.workers)))
            with timed(report):
                prepare_data(data, "ray", arguments.workers, console)
    train = read_manifest(arguments.out).splits["train"]
    tell({**report, "tokens": train.tokens, "documents": train.documents})


def _preparation(arguments: argparse.Namespace) -> DataSettings:
    prepare: dict[str, Any] = {
        "corpus": {"source": "parquet", "paths": [str(arguments.corpus / "*.parquet")]},
        "tokenizer": {"path": str(arguments.tokenizer)},
        "validation_fraction": 0.0,
    }
    if "dedup" in PrepareSettings.model_fields:  # the corpus has no equal documents, and the others look for none
        prepare["dedup"] = {"method": "none"}
    return DataSettings.model_validate({"dir": str(arguments.out), "sequence_length": 2048, "prepare": prepare})


def _warm(number: int) -> int:
    """Makes a worker import what tasks use, and busy for long enough that the next call goes to another."""
    import gigatoken  # noqa: F401

    import data_prep.columns
    import data_prep.pipeline  # noqa: F401

    time.sleep(0.3)
    return number


def batches() -> None:
    """Delivers the training batches of a prepared folder."""
    # With its neighbours on PYTHONPATH: peers have no packages of the project, so it imports them by their bare names.
    from benchmarks.peers import delivery

    mask = sys.argv.pop(1)
    arguments = delivery.parse(__doc__)
    import torch

    from pretrain.data.batches import training_batches

    torch.set_num_threads(1)
    data = DataSettings.model_validate(
        {"dir": str(arguments.stream), "sequence_length": arguments.sequence_length, "document_mask": mask}
    )
    with training_batches(
        data,
        seed=1,
        global_batch_sequences=arguments.batch,
        micro_batch_sequences=arguments.batch,
        data_rank=0,
        data_size=1,
        first_step=0,
    ) as found:
        pass_batches = found.num_samples // arguments.batch
        tell(delivery.deliver(_single(found), pass_batches, _parts, arguments))


def _single(found: Iterator[Any]) -> Iterator[Any]:
    for (batch,) in found:
        yield batch


def _parts(batch: Any) -> tuple[Any, Any]:
    """Inputs and labels; those that cross into another document are filled in, for the check."""
    tokens, labels = batch.inputs["tokens"], batch.labels.clone()
    labels[:, :-1][labels[:, :-1] == IGNORED] = tokens[:, 1:][labels[:, :-1] == IGNORED]
    return tokens, labels


if __name__ == "__main__":
    main()
