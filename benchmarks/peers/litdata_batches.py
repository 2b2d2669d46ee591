"""litdata: chunks of tokens read by its TokensLoader in blocks of S + 1, shuffled, through its own loader without workers."""

import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from delivery import deliver, endless, parse
from litdata import StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming.item_loader import TokensLoader
from tree_clock import tell

PIECE = 1 << 20
"""Tokens handed over at once."""


class Stream:
    """Pieces of the stream as tensors of int32."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self, start: int) -> torch.Tensor:
        """Tokens from a place on."""
        tokens = np.memmap(self.path, dtype=np.uint16, mode="r")
        return torch.from_numpy(tokens[start : start + PIECE].astype(np.int32))


def main() -> None:
    """Writes chunks, or delivers batches."""
    arguments = parse(__doc__)
    loader = TokensLoader(block_size=arguments.sequence_length + 1)
    if arguments.make:
        shutil.rmtree(arguments.out, ignore_errors=True)
        stream = arguments.stream / "stream.tokens"
        starts = list(range(0, stream.stat().st_size // 2, PIECE))
        optimize(
            Stream(stream), starts, str(arguments.out), chunk_bytes="64MB", num_workers=1, item_loader=loader,
            reorder_files=False, verbose=False,
        )  # fmt: skip
        return tell({})
    torch.set_num_threads(1)
    dataset = StreamingDataset(str(arguments.out), item_loader=loader, shuffle=True, drop_last=True)
    batches = StreamingDataLoader(dataset, batch_size=arguments.batch, num_workers=0, drop_last=True)
    pass_batches = len(dataset) // arguments.batch
    report = deliver(endless(lambda: batches), pass_batches, lambda rows: (rows[:, :-1], rows[:, 1:]), arguments)
    return tell({**report, "versions": {"litdata": version("litdata"), "torch": torch.__version__}})


if __name__ == "__main__":
    main()
