"""Megatron's `PREFIX.bin` and `PREFIX.idx` (its IndexedDataset, version 1): reading, importing, exporting.

    .idx   b"MMIDIDX\\0\\0", u64 version 1, u8 code of the token type, u64 sequences, u64 documents + 1, then
           int32 tokens of each sequence, int64 byte where each begins, int64 first sequence of each document and of the next
    .bin   tokens, little-endian, the sequences one after another

A document is one sequence or several (files split by sentence); it is read as one stretch of tokens. The format lets pointers
be anything; every known writer lays sequences without gaps, so anything else is damage, and a flipped bit in a pointer is found.
Files of several modes (images and text) are refused. Alternative not taken: Megatron's own reader: it needs torch, and asserts
little of this.
"""

from collections.abc import Sequence
from pathlib import Path
from struct import Struct

import numpy as np

from data_prep.formats.exporting import ExportReport, check_sizes, document_lengths, opened, outputs, token_blocks
from data_prep.formats.importing import DocumentEnd, ImportReport, import_files
from data_prep.formats.token_files import CHECK_ENTRIES, TokenFile, damaged, file_bytes, map_bytes
from pretrain.data.manifest import END_OF_TEXT, Split
from pretrain.errors import DataError

MAGIC, VERSION = b"MMIDIDX\0\0", 1
HEADER = Struct("<9sQBQQ")
TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
UINT16_VOCABULARY = 65_500
"""Megatron stores ids as uint16 below this size of the vocabulary, as int32 from it on (DType.optimal_dtype)."""
MAX_SEQUENCE = (1 << 31) - 1


def import_megatron(
    prefixes: Sequence[str | Path],
    folder: str | Path,
    tokenizer: str | Path,
    *,
    document_end: DocumentEnd = "present",
    end_of_text: str = END_OF_TEXT,
    validation: float | Sequence[str | Path] = 0.02,
    shard_tokens: int = 16_777_216,
) -> ImportReport:
    """Copies Megatron files into a new data folder; the copy is checksummed, the files are not needed any more.

    Args:
        prefixes: each names PREFIX.bin and PREFIX.idx; their order is that of the stream.
        folder: where the data folder is made; must not hold anything else.
        tokenizer: the byte-level tokenizer.json that the ids are of.
        document_end: whether the files end each document with the end-of-text token (Megatron's `--append-eod`), or it is to
            be added to each.
        end_of_text: the tokenizer's name for that token; the folder's tokenizer calls it <|endoftext|>.
        validation: the share of documents that is held out, chosen by a hash of their tokens, or prefixes of files to hold out.
        shard_tokens: most tokens in a shard.

    Raises DataError for damaged files, for ids that the tokenizer does not have, and where `document_end` is not so;
    StorageError.
    """
    return import_files(
        open_megatron,
        [prefix_of(prefix) for prefix in prefixes],
        Path(folder),
        Path(tokenizer),
        format_name="megatron",
        document_end=document_end,
        end_of_text=end_of_text,
        validation=validation if isinstance(validation, int | float) else [prefix_of(x) for x in validation],
        shard_tokens=shard_tokens,
    )


def export_megatron(folder: str | Path, split: Split, prefix: str | Path) -> ExportReport:
    """Writes a split of a data folder as PREFIX.bin and PREFIX.idx, a document a sequence, with its end-of-text token.

    Raises DataError where the files exist, a document is longer than the format holds, or a shard is damaged; StorageError.
    """
    shards, prefix = opened(folder, split), prefix_of(prefix)
    bin_path, index_path = _paths(prefix)
    small = shards.manifest.vocab_size < UINT16_VOCABULARY
    dtype, code = (np.dtype("<u2"), 8) if small else (np.dtype("<i4"), 4)
    check_sizes(shards, MAX_SEQUENCE, "a Megatron sequence")
    with outputs(bin_path, index_path) as (tokens_file, index_file):
        for block in token_blocks(shards):
            tokens_file.write(block.astype(dtype).tobytes())
        documents = shards.num_documents
        index_file.write(HEADER.pack(MAGIC, VERSION, code, documents, documents + 1))
        for lengths in document_lengths(shards):
            index_file.write(lengths.astype("<i4").tobytes())
        start = 0
        for lengths in document_lengths(shards):
            ends = start + np.cumsum(lengths)
            index_file.write(((ends - lengths) * dtype.itemsize).astype("<i8").tobytes())
            start = int(ends[-1])
        for first in range(0, documents + 1, CHECK_ENTRIES):
            index_file.write(np.arange(first, min(first + CHECK_ENTRIES, documents + 1), dtype="<i8").tobytes())
    return ExportReport("megatron", (bin_path, index_path), split, shards.num_tokens, documents, dtype.name)


def prefix_of(name: str | Path) -> Path:
    """The prefix of a pair of files; the name of either will do."""
    path = Path(name).expanduser()
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _paths(prefix: Path) -> tuple[Path, Path]:
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def open_megatron(prefix: Path) -> TokenFile:
    """Opens PREFIX.bin and PREFIX.idx and checks the index and the sizes of both.

    Raises DataError for what breaks the format, StorageError.
    """
    bin_path, index_path = _paths(prefix)
    content = map_bytes(index_path)
    dtype, sequences, entries = _header(index_path, content)
    lengths = np.frombuffer(content, "<i4", sequences, HEADER.size)
    pointers = np.frombuffer(content, "<i8", sequences, HEADER.size + 4 * sequences)
    firsts = np.frombuffer(content, "<i8", entries, HEADER.size + 12 * sequences)
    tokens = _check_sequences(index_path, lengths, pointers, dtype.itemsize)
    _check_documents(index_path, firsts, sequences)
    size = file_bytes(bin_path)
    if size != tokens * dtype.itemsize:
        raise damaged(
            bin_path,
            f"it has {size:,} bytes, its index says {tokens * dtype.itemsize:,} ({tokens:,} x {dtype.itemsize})",
        )

    def ends_of(first: int, last: int) -> np.ndarray:
        following = firsts[first + 1 : last + 1]
        ends = np.full(len(following), tokens, dtype=np.int64)
        inner = following < sequences
        ends[inner] = pointers[following[inner]] // dtype.itemsize
        return ends

    return TokenFile(bin_path, index_path, dtype, tokens, entries - 1, ends_of)


def _header(path: Path, content: np.ndarray) -> tuple[np.dtype, int, int]:
    """Type of the tokens, number of sequences, entries of the document index."""
    if len(content) < HEADER.size:
        raise damaged(path, f"it is cut off at {len(content)} bytes, in its header")
    magic, version, code, sequences, entries = HEADER.unpack(content[: HEADER.size].tobytes())
    if magic != MAGIC or version != VERSION:
        raise DataError(
            f"{path}: no Megatron index of version 1 (it does not begin with MMIDIDX); give PREFIX of such files"
        )
    if code not in TYPES:
        raise damaged(path, f"{code} is no code of a token type")
    dtype = np.dtype(TYPES[code])
    if dtype.kind == "f":
        raise DataError(f"{path}: holds {dtype.name}, not token ids; give a file of integers")
    needed = HEADER.size + 12 * sequences + 8 * entries
    if len(content) == needed + sequences and sequences:
        raise DataError(f"{path}: holds several modes (images and text); only files of text alone can be read")
    if len(content) != needed or entries < 1:
        raise damaged(path, f"it has {len(content):,} bytes, its header says {needed:,}")
    return dtype, sequences, entries


def _check_sequences(path: Path, lengths: np.ndarray, pointers: np.ndarray, width: int) -> int:
    """The number of tokens; raises where a length is negative or sequences do not lie one after another."""
    total = 0
    for at in range(0, len(lengths), CHECK_ENTRIES):
        some = lengths[at : at + CHECK_ENTRIES].astype(np.int64)
        if (negative := some < 0).any():
            raise damaged(path, f"sequence {at + int(negative.argmax()):,} has a negative length")
        ends = total + np.cumsum(some)
        wrong = pointers[at : at + CHECK_ENTRIES] != (ends - some) * width
        if wrong.any():
            place = int(wrong.argmax())
            raise damaged(
                path,
                f"sequence {at + place:,} begins at byte {int(pointers[at + place]):,}, "
                f"the sequences before it end at {int(ends[place] - some[place]) * width:,}",
            )
        total = int(ends[-1])
    return total


def _check_documents(path: Path, firsts: np.ndarray, sequences: int) -> None:
    if firsts[0] != 0 or firsts[-1] != sequences:
        raise damaged(
            path, f"documents go from sequence {firsts[0]:,} to {firsts[-1]:,}, the file has 0 to {sequences:,}"
        )
    for at in range(0, len(firsts) - 1, CHECK_ENTRIES):
        some = firsts[at : at + CHECK_ENTRIES + 1]
        if (falling := some[1:] < some[:-1]).any():
            raise damaged(path, f"document {at + int(falling.argmax()):,} ends before it begins")
