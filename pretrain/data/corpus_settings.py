"""The part of the config that says where documents come from."""

from typing import Literal

from pydantic import Field

from pretrain.settings import Settings

Source = Literal["standard_library", "text", "jsonl", "parquet", "hub", "message_catalogues", "aligned_text"]


class CorpusSettings(Settings):
    """Where documents come from."""

    source: Source
    """`standard_library`: the .py files of the running interpreter. `text`: one document a file. `jsonl`, `parquet`: one
    document a row. `hub`: a data set by name or folder, through `datasets`. `message_catalogues`: gettext .mo files, read as
    pairs. `aligned_text`: pairs from two files, line by line."""
    paths: tuple[str, ...] = Field(default=(), strict=False)
    """Files, folders or globs of `text`, `jsonl`, `parquet`, `message_catalogues` and (source side) `aligned_text`: on this
    machine, or addresses that fsspec opens (`s3://bucket/folder`, `gs://`, `https://`). Other files than parquet may
    end in .gz or .zst."""
    target_paths: tuple[str, ...] = Field(default=(), strict=False)
    """Files of the target side of `aligned_text`, in the order of `paths`."""
    packages: tuple[str, ...] = Field(default=(), strict=False)
    """Debian packages that hold the catalogues, fetched with apt-get and unpacked under the data folder."""
    name: str | None = None
    """Of a `hub` data set: `owner/name`, or a local folder that `datasets` can load."""
    subset: str | None = None
    """Configuration of a `hub` data set, where it has several."""
    split: str = "train"
    """Split of a `hub` data set that is read."""
    revision: str | None = None
    """Commit of a `hub` data set, all 40 digits, so that a run can be repeated: a branch moves. Not read for a local folder."""
    streaming: Literal["enabled", "disabled"] = "disabled"
    """`disabled`: a `hub` data set is downloaded into the cache of `datasets`, then copied. `enabled`: rows go from the network
    into the data folder with no copy in between, which is slower for small data sets and needs half the disk for large ones."""
    text_field: str = "text"
    """The column of a row that holds the document. A dot reaches into an object: `meta.body`."""
    source_field: str | None = None
    """With `target_field`: the rows are pairs, and these columns hold their sides (`translation.en`, `translation.de`)."""
    target_field: str | None = None
    """See `source_field`."""
    source_language: str = "en"
    """Of pairs."""
    target_language: str = "de"
    """Of pairs; the language code of the catalogues."""

    @property
    def kind(self) -> Literal["text", "pairs"]:
        """Whether documents are plain text or source-target pairs."""
        return "pairs" if self.source in ("message_catalogues", "aligned_text") or self.source_field else "text"

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of a row that are read: one of text, two of pairs."""
        return (self.source_field, self.target_field or "") if self.source_field else (self.text_field,)
