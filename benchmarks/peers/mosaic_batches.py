"""MosaicML streaming: MDS shards of S + 1 tokens a sample (int32 arrays), shuffled, through its own loader without workers.

Its package imports torchvision at the top, of which the index has no build for torch on CPUs; only `streaming.base` is needed, so
the package's own __init__ is passed over.
"""

import importlib
import importlib.util
import shutil
import sys
import types
from importlib.metadata import version

import numpy as np
import torch
from delivery import deliver, endless, parse
from tree_clock import tell


def streaming_base() -> types.ModuleType:
    """`streaming.base`, without what the package imports beside it."""
    package = types.ModuleType("streaming")
    package.__path__ = list(importlib.util.find_spec("streaming").submodule_search_locations)
    sys.modules["streaming"] = package
    return importlib.import_module("streaming.base")


def main() -> None:
    """Writes shards, or delivers batches."""
    arguments, base = parse(__doc__), streaming_base()
    width = arguments.sequence_length + 1
    if arguments.make:
        shutil.rmtree(arguments.out, ignore_errors=True)
        tokens = np.memmap(arguments.stream / "stream.tokens", dtype=np.uint16, mode="r")
        with base.MDSWriter(out=str(arguments.out), columns={"tokens": f"ndarray:int32:{width}"}) as writer:
            for start in range(0, len(tokens) - width + 1, width):
                writer.write({"tokens": tokens[start : start + width].astype(np.int32)})
        return tell({})
    torch.set_num_threads(1)
    dataset = base.StreamingDataset(local=str(arguments.out), shuffle=True, batch_size=arguments.batch)
    batches = base.StreamingDataLoader(dataset, batch_size=arguments.batch, num_workers=0, drop_last=True)
    report = deliver(
        endless(lambda: batches),
        len(dataset) // arguments.batch,
        lambda rows: (rows["tokens"][:, :-1], rows["tokens"][:, 1:]),
        arguments,
    )
    return tell(
        {**report, "versions": {"mosaicml-streaming": version("mosaicml-streaming"), "torch": torch.__version__}}
    )


if __name__ == "__main__":
    main()
