"""torch's DataLoader over a memory map of the tokens: windows of S + 1, shuffled, as int64."""

import numpy as np
import torch
from delivery import deliver, endless, parse
from torch.utils.data import DataLoader, Dataset
from tree_clock import tell


class Windows(Dataset):
    """Window k of the stream."""

    def __init__(self, path: str, sequence_length: int) -> None:
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.sequence_length

    def __getitem__(self, number: int) -> torch.Tensor:
        start = number * self.sequence_length
        return torch.from_numpy(self.tokens[start : start + self.sequence_length + 1].astype(np.int64))


def main() -> None:
    """Delivers batches."""
    arguments = parse(__doc__)
    if arguments.make:
        return tell({})
    torch.set_num_threads(1)
    windows = Windows(str(arguments.stream / "stream.tokens"), arguments.sequence_length)
    workers = arguments.workers
    loader = DataLoader(
        windows, arguments.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    report = deliver(endless(lambda: loader), len(loader), lambda rows: (rows[:, :-1], rows[:, 1:]), arguments)
    return tell({**report, "versions": {"torch": torch.__version__}})


if __name__ == "__main__":
    main()
