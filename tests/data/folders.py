"""Data folders made by hand, small enough to know every token of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.data.token_shards import (
    TOKENIZER_NAME,
    Manifest,
    Origin,
    ShardRecord,
    SpecialTokens,
    Split,
    SplitRecord,
    token_dtype,
    write_manifest,
    write_shard,
)
from pretrain.files import hash_bytes

SPECIAL = SpecialTokens(end_of_text=0, target=1, padding=2)
FIRST_TEXT_TOKEN = 3
TOKENIZER = b"{}"
"""Content of tokenizer.json: these folders are never decoded."""
TOKENIZER_HASH = hash_bytes(TOKENIZER)
ORIGIN = Origin(source="22" * 16, tokenizer=TOKENIZER_HASH, config="33" * 16)

Documents = Sequence[Sequence[int]]
Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]


def text_documents(count: int, seed: int, longest: int = 40, vocab_size: int = 100) -> Documents:
    """Documents of 1 to `longest` random tokens."""
    random = np.random.default_rng(seed)
    return [
        random.integers(FIRST_TEXT_TOKEN, vocab_size, random.integers(1, longest + 1)).tolist() for _ in range(count)
    ]


def counted_pairs(count: int, seed: int, longest: int = 9, vocab_size: int = 60_000) -> Pairs:
    """Pairs whose two sides carry the pair's number, so that a side that is matched with another pair's shows."""
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        token = FIRST_TEXT_TOKEN + number
        assert 2 * token < vocab_size
        sides = random.integers(1, longest + 1, 2)
        pairs.append(([token] * sides[0], [token + vocab_size // 2] * sides[1]))
    return pairs


def write_folder(
    folder: Path,
    train: Documents | Pairs,
    validation: Documents | Pairs,
    *,
    kind: str = "text",
    vocab_size: int = 100,
    shard_documents: int = 7,
    block_bytes: int = 1 << 20,
) -> Manifest:
    """Writes a data folder of several shards."""
    splits: dict[Split, SplitRecord] = {}
    given: dict[Split, Documents | Pairs] = {"train": train, "validation": validation}
    for split, documents in given.items():
        records = [
            _write(folder, split, at, documents[at : at + shard_documents], kind, vocab_size, block_bytes)
            for at in range(0, len(documents), shard_documents)
        ]
        splits[split] = SplitRecord.of(records)
    manifest = Manifest("pairs" if kind == "pairs" else "text", vocab_size, TOKENIZER_HASH, SPECIAL, splits)
    write_manifest(folder, manifest)
    (folder / TOKENIZER_NAME).write_bytes(TOKENIZER)
    return manifest


def _write(
    folder: Path, split: str, at: int, documents: Documents | Pairs, kind: str, vocab_size: int, block_bytes: int
) -> ShardRecord:
    if kind == "pairs":
        stored = [[*s, SPECIAL.target, *t, SPECIAL.end_of_text] for s, t in documents]  # type: ignore[misc]
        sources = np.array([len(s) for s, _ in documents])  # type: ignore[misc]
    else:
        stored = [[*document, SPECIAL.end_of_text] for document in documents]
        sources = None
    return write_shard(
        folder,
        f"{split}/{at:06d}.tokens",
        np.concatenate([np.array(ids) for ids in stored]).astype(token_dtype(vocab_size)),
        np.array([len(ids) for ids in stored]),
        text_bytes=sum(len(ids) for ids in stored),
        origin=ORIGIN,
        source_lengths=sources,
        block_bytes=block_bytes,
    )
