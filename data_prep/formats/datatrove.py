"""datatrove's `.ds` files (its TokenizedFile): reading, importing, exporting.

    NAME.ds            tokens, little-endian uint16 or uint32, the documents one after another
    NAME.ds.index      u64 end of each document, in tokens
    NAME.ds.metadata   optional, three lines: tokenizer|bytes of a token, number of tokens, the same for people
    NAME.ds.loss       optional, a byte a token: masks of the loss; not read

The width of a token is that which makes the last end the size of the file; the metadata, where there, must agree.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.formats.exporting import ExportReport, document_lengths, opened, outputs, token_blocks
from data_prep.formats.importing import DocumentEnd, ImportReport, import_files
from data_prep.formats.token_files import CHECK_ENTRIES, TokenFile, damaged, file_bytes, map_bytes, readable
from pretrain.data.manifest import END_OF_TEXT, TOKENIZER_NAME, Split
from pretrain.errors import DataError

PREFIXES = "kMGTPE"


def import_datatrove(
    files: Sequence[str | Path],
    folder: str | Path,
    tokenizer: str | Path,
    *,
    document_end: DocumentEnd = "present",
    end_of_text: str = END_OF_TEXT,
    validation: float | Sequence[str | Path] = 0.02,
    shard_tokens: int = 16_777_216,
) -> ImportReport:
    """Copies `.ds` files into a new data folder; arguments and errors are those of `import_megatron`.

    `document_end` is "present" for files that datatrove wrote with an `eos_token`.
    """
    return import_files(
        open_datatrove,
        [Path(file).expanduser() for file in files],
        Path(folder),
        Path(tokenizer),
        format_name="datatrove",
        document_end=document_end,
        end_of_text=end_of_text,
        validation=validation
        if isinstance(validation, int | float)
        else [Path(file).expanduser() for file in validation],
        shard_tokens=shard_tokens,
    )


def export_datatrove(
    folder: str | Path, split: Split, path: str | Path, tokenizer_name: str | None = None
) -> ExportReport:
    """Writes a split of a data folder as a `.ds` file with its index and metadata.

    Args:
        folder: the data folder.
        split: train or validation.
        path: of the file; must end with .ds, by which datatrove finds it.
        tokenizer_name: kept in the metadata; None: the path of the folder's tokenizer.json.

    Raises DataError where a file exists or a shard is damaged; StorageError.
    """
    path = Path(path).expanduser()
    if path.suffix != ".ds":
        raise DataError(f"{path}: datatrove finds its files by the ending .ds; give a name that has it")
    shards = opened(folder, split)
    dtype, total = shards.manifest.dtype, shards.num_tokens
    name = str(Path(folder) / TOKENIZER_NAME) if tokenizer_name is None else tokenizer_name
    names = (path, _beside(path, ".index"), _beside(path, ".metadata"))
    with outputs(*names) as (tokens_file, index_file, metadata_file):
        for block in token_blocks(shards):
            tokens_file.write(block.astype(dtype).tobytes())
        start = 0
        for lengths in document_lengths(shards):
            ends = start + np.cumsum(lengths)
            index_file.write(ends.astype("<u8").tobytes())
            start = int(ends[-1])
        metadata_file.write(f"{name}|{dtype.itemsize}\n{total}\n{_for_people(total)}".encode())
    return ExportReport("datatrove", names, split, total, shards.num_documents, dtype.name)


def open_datatrove(path: Path) -> TokenFile:
    """Opens a `.ds` file and checks its index, size and metadata. Raises DataError for what breaks the format, StorageError."""
    index_path = _beside(path, ".index")
    size, content = file_bytes(path), map_bytes(index_path)
    if len(content) % 8:
        raise damaged(index_path, f"it has {len(content):,} bytes, no whole number of u64 document ends")
    ends = np.frombuffer(content, "<u8")
    for at in range(0, len(ends) - 1, CHECK_ENTRIES):
        some = ends[at : at + CHECK_ENTRIES + 1]
        if (falling := some[1:] < some[:-1]).any():
            raise damaged(index_path, f"document {at + int(falling.argmax()) + 1:,} ends before it begins")
    tokens = int(ends[-1]) if len(ends) else 0
    width = next((width for width in (2, 4) if tokens * width == size), None)
    if width is None:
        raise damaged(path, f"it has {size:,} bytes, its index says {tokens:,} tokens of 2 or 4 bytes")
    if tokens:
        _check_metadata(_beside(path, ".metadata"), tokens, width)

    def ends_of(first: int, last: int) -> np.ndarray:
        return ends[first:last].astype(np.int64)

    notes = (f"{path.name}.loss: masks of the loss are not read",) if _beside(path, ".loss").exists() else ()
    return TokenFile(path, index_path, np.dtype(f"<u{width}"), tokens, len(ends), ends_of, notes)


def _check_metadata(path: Path, tokens: int, width: int) -> None:
    try:
        with readable(path):
            if not path.exists():
                return
            lines = path.read_text(encoding="utf-8").split("\n")
        stated = (int(lines[1]), int(lines[0].rpartition("|")[2]))
    except (ValueError, IndexError):  # UnicodeDecodeError is a ValueError
        raise damaged(
            path, "it is not three lines: tokenizer|bytes of a token, number of tokens, the same for people"
        ) from None
    if stated != (tokens, width):
        raise damaged(
            path, f"it says {stated[0]:,} tokens of {stated[1]} bytes, the files hold {tokens:,} of {width} bytes"
        )


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _for_people(tokens: int) -> str:
    """Three digits, an SI prefix and T for tokens: 1.23 MT."""
    exponent = len(str(tokens)) - 1
    for power in (exponent, exponent + 1):  # the next power where rounding carries: 999,999 is 1.00 M
        text = f"{tokens / 1000 ** (power // 3):.{2 - power % 3}f}"
        if float(text) < 10 ** (power % 3 + 1):
            break
    return f"{text} {('', *PREFIXES)[power // 3]}T"
