"""Megatron's GPTDataset over .bin/.idx: its shuffled samples, collated by torch's DataLoader without workers.

No attention mask is made, positions and masks are the cached ones: its cheapest way. One pass is what its index covers; the next
pass reads the same index again, so that building it is not timed.
"""

import shutil
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import torch
from delivery import deliver, endless, parse
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from torch.utils.data import DataLoader
from tree_clock import tell


def main() -> None:
    """Writes .bin and .idx, or delivers batches."""
    arguments = parse(__doc__)
    prefix = str(arguments.out / "stream")
    if arguments.make:
        shutil.rmtree(arguments.out, ignore_errors=True)
        arguments.out.mkdir(parents=True)
        tokens = np.memmap(arguments.stream / "stream.tokens", dtype=np.uint16, mode="r")
        ends = np.load(arguments.stream / "ends.npy")
        builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16)
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            builder.add_document(torch.from_numpy(tokens[start:end].astype(np.int32)), [end - start])
        builder.finalize(prefix + ".idx")
        return tell({})
    torch.set_num_threads(1)
    samples = (int(np.load(arguments.stream / "ends.npy")[-1]) - 1) // arguments.sequence_length
    tokenizer = SimpleNamespace(vocab_size=32_768, eod=0, pad=-1, unique_identifiers={"name": "benchmark"})
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=arguments.sequence_length, blend=([prefix], None), split="1,0,0",
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
        tokenizer=tokenizer, path_to_cache=str(arguments.out / "cache"),
    )  # fmt: skip
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]
    loader = DataLoader(dataset, arguments.batch, shuffle=False, drop_last=True, num_workers=0)
    report = deliver(endless(lambda: loader), len(loader), lambda rows: (rows["tokens"], rows["labels"]), arguments)
    return tell({**report, "versions": {"megatron-core": version("megatron-core"), "torch": torch.__version__}})


if __name__ == "__main__":
    main()
