"""The documents of the golden files, their tokenizers, and a plain reading of both formats that shares nothing with ours."""

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pretrain.data.token_shards import END_OF_TEXT, PADDING, TARGET, Split, TokenShards

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"
END = 0
SMALL, LARGE = 259, 70_000

Documents = list[list[int]]


def documents(vocab_size: int = SMALL) -> Documents:
    """Those of benchmarks/peers/token_files.py, their ends included."""
    return [
        [3 + (number * 3001 + place * 1777) % (vocab_size - 3) for place in range(1 + number * 7 % 23)] + [END]
        for number in range(40)
    ]


def write_tokenizer(path: Path, special: tuple[str, ...] = (END_OF_TEXT, TARGET, PADDING), fillers: int = 0) -> Path:
    """A byte-level tokenizer without merges: special tokens, then 256 bytes, then fillers."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*special, *letters, *(f"filler{number}" for number in range(fillers))]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    path.write_text(tokenizer.to_str())
    return path


def stored(folder: Path, split: Split = "train") -> Documents:
    """Every document of a data folder."""
    shards = TokenShards.open(folder, split)
    return [shards.document(number).tolist() for number in range(shards.num_documents)]


def read_plainly(prefix: Path) -> Documents:
    """Megatron files, by the layout alone."""
    index = prefix.with_suffix(".idx").read_bytes()
    _, _, code, sequences, entries = struct.unpack_from("<9sQBQQ", index)
    types = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
    tokens = np.fromfile(prefix.with_suffix(".bin"), types[code]).tolist()
    sizes = struct.unpack_from(f"<{sequences}i", index, 34)
    firsts = struct.unpack_from(f"<{entries}q", index, 34 + 12 * sequences)
    starts = [0, *np.cumsum(sizes).tolist()]
    return [tokens[starts[a] : starts[b]] for a, b in pairwise(firsts)]


def write_megatron(prefix: Path, texts: Documents, dtype: str = "<u2") -> Path:
    """Megatron files of any type of token, a document a sequence."""
    code = {"<u1": 1, "<i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<f8": 6, "<f4": 7, "<u2": 8}[dtype]
    sizes = [len(text) for text in texts]
    starts = [0, *np.cumsum(sizes).tolist()][:-1]
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(texts), len(texts) + 1)
    index += np.array(sizes, "<i4").tobytes() + (np.array(starts, "<i8") * np.dtype(dtype).itemsize).tobytes()
    prefix.with_suffix(".idx").write_bytes(index + np.arange(len(texts) + 1, dtype="<i8").tobytes())
    np.array([token for text in texts for token in text], dtype).tofile(prefix.with_suffix(".bin"))
    return prefix


def content(folder: Path) -> dict[str, Any]:
    """The folder's manifest.json."""
    return json.loads((folder / "manifest.json").read_text())
