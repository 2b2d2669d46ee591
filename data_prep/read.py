"""Reading: from a range of files to documents and pairs, and to what could not be read, with file, line and reason.

    for item in read_range(files, corpus, prepare): ...

Every source is a generator over one part; `read_range` chains them. A document and a buffer are all that is held, however large
the files are. Nothing here stops at a bad document: it is handed on as BadDocument, to be quarantined and counted. What is
wrong with the machine (a file that is gone, a disk, a store that does not answer) does stop it.
"""

from collections.abc import Callable, Iterator, Mapping

from data_prep.aligned import read_aligned
from data_prep.catalogues import BadCatalogue, read_catalogue
from data_prep.items import EMPTY, BadDocument, Document, Dropped, FileRange, Item, Part
from data_prep.jsonl import read_jsonl
from data_prep.rows import Made, pair_of, text_of, too_long
from data_prep.streams import Damaged, is_compressed, open_part
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

__all__ = ["EMPTY", "BadDocument", "Document", "Dropped", "FileRange", "Item", "Part", "read_range"]


def read_range(files: FileRange, corpus: CorpusSettings, prepare: PrepareSettings) -> Iterator[Item]:
    """All that a range holds, in a fixed order.

    Args:
        files: of plan_ranges.
        corpus: that the range was planned of.
        prepare: limits of documents and pairs.

    Raises:
        DataError: a file is gone since it was listed, has no such column, or (aligned text) has fewer lines than its
            other side.
        StorageError: a file may not be read, or a store does not answer.
    """
    read = _SOURCES[corpus.source]
    for part in files.parts:
        try:
            with told_as_storage_error(part.name):
                yield from read(part, corpus, prepare)
        except FileNotFoundError:
            raise DataError(f"{part.name}: gone since the corpus was listed; prepare again") from None


def _read_text(part: Part, corpus: CorpusSettings, prepare: PrepareSettings) -> Iterator[Item]:
    made = _text_of_file(part, prepare.max_document_bytes)
    yield BadDocument(part.name, None, made) if isinstance(made, str) else made


def _text_of_file(part: Part, longest: int) -> Made:
    if part.size > longest and not is_compressed(part.path):
        return too_long(part.size, longest)
    try:
        with open_part(part) as file:
            content = file.read(longest + 1)
    except Damaged as error:
        return str(error)
    if len(content) > longest:
        return f"more than {longest:,} bytes, over max_document_bytes"
    try:
        return text_of(content.decode(), longest)
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte {error.start} is 0x{content[error.start]:02x}"


def _read_catalogue(part: Part, corpus: CorpusSettings, prepare: PrepareSettings) -> Iterator[Item]:
    try:
        with open_part(part) as file:
            content = file.read()
        for source, target in read_catalogue(content):
            made = pair_of(source, target, prepare.pair_max_characters)
            yield BadDocument(part.name, None, made) if isinstance(made, str) else made
    except (BadCatalogue, Damaged) as error:
        yield BadDocument(part.name, None, str(error))


def _read_parquet(part: Part, corpus: CorpusSettings, prepare: PrepareSettings) -> Iterator[Item]:
    from data_prep.columns import read_parquet  # pyarrow takes 0.3 s to load, and most corpora are not parquet

    return read_parquet(part, corpus, prepare)


_SOURCES: Mapping[str, Callable[[Part, CorpusSettings, PrepareSettings], Iterator[Item]]] = {
    "standard_library": _read_text,
    "text": _read_text,
    "jsonl": read_jsonl,
    "parquet": _read_parquet,
    "hub": _read_parquet,
    "message_catalogues": _read_catalogue,
    "aligned_text": read_aligned,
}
