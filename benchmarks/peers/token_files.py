"""Token files as the real libraries write and read them: the golden files of tests/golden/formats, and a check of our exports.

    pip install datatrove==0.10.1 megatron-core==0.16.1 torch==2.13.0
    python benchmarks/peers/token_files.py make FOLDER     writes the golden files
    python benchmarks/peers/token_files.py read FOLDER     reads files of the same names with the libraries, and compares

Run in an environment of its own; nothing of pretrain is imported. tests/data_prep/formats/samples.py has the same documents.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronTokenizedFile
from datatrove.pipeline.tokens.merger import load_doc_ends
from datatrove.pipeline.tokens.tokenizer import TokenizedFile
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

END = 0


def documents(vocab_size: int) -> list[list[int]]:
    """Forty short ones, each with its end."""
    return [
        [3 + (number * 3001 + place * 1777) % (vocab_size - 3) for place in range(1 + number * 7 % 23)] + [END]
        for number in range(40)
    ]


CASES = {"small": (np.uint16, 2, 259), "large": (np.int32, 4, 70_000)}
"""Type in Megatron's files, bytes of a token in datatrove's, size of the vocabulary."""


def make(folder: Path) -> None:
    """Writes the golden files."""
    for name, (dtype, width, vocab_size) in CASES.items():
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=dtype)
        file = TokenizedFile(
            str(folder), f"{name}.ds", tokenizer_name_or_path="golden", save_final_metadata=True, token_size=width
        )
        for document in documents(vocab_size):
            builder.add_document(torch.tensor(document), [len(document)])
            file.write(document, None)
        builder.finalize(str(folder / f"{name}.idx"))
        file.close()
    sentences = IndexedDatasetBuilder(str(folder / "sentences.bin"), dtype=np.int32)
    for number, document in enumerate(documents(259)):
        if number == 5:
            sentences.end_document()  # an empty one
        cut = len(document) // 2
        for part in (document[:cut], document[cut:-1]):
            sentences.add_item(torch.tensor(part, dtype=torch.int64))
        sentences.end_document()
    sentences.finalize(str(folder / "sentences.idx"))


def read(folder: Path) -> None:
    """Reads files with the libraries. Raises AssertionError where they hold other documents."""
    for name, (dtype, width, vocab_size) in CASES.items():
        expected = documents(vocab_size)
        data = IndexedDataset(str(folder / name))
        assert data.index.dtype == dtype and data.document_indices.tolist() == list(range(len(expected) + 1))
        assert [data[number].tolist() for number in range(len(data))] == expected, f"{name}.bin"
        with (folder / f"{name}.ds.index").open("rb") as index:
            ends = load_doc_ends(index)
        tokens = np.fromfile(folder / f"{name}.ds", f"<u{width}")
        assert [part.tolist() for part in np.split(tokens, ends[:-1])] == expected, f"{name}.ds"
        print(f"{name}: {len(expected)} documents, {sum(map(len, expected))} tokens, as the libraries read them")
    other = MegatronTokenizedFile(str(folder), "datatrove", token_size=2)
    for document in documents(259):
        other.write(document)
    other.close()
    for ending in ("bin", "idx"):
        written = folder / f"datatrove.{ending}"
        assert written.read_bytes() == (folder / f"small.{ending}").read_bytes()
        written.unlink()
    print("datatrove's own writer of Megatron files gives the same bytes")


if __name__ == "__main__":
    {"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
