"""The part of the config that says where documents come from."""

from typing import Literal

from pydantic import Field

from pretrain.settings import Settings


class CorpusSettings(Settings):
    """Where documents come from."""

    source: Literal["standard_library", "text", "jsonl", "parquet", "hub", "message_catalogues"]
    """`standard_library`: the .py files of the running interpreter. `text`: one document a file. `jsonl`, `parquet`: one
    document a row. `hub`: a data set by name, through `datasets`. `message_catalogues`: gettext .mo files, read as pairs."""
    paths: tuple[str, ...] = Field(default=(), strict=False)
    """Files, folders or globs of `text`, `jsonl`, `parquet` and `message_catalogues`."""
    packages: tuple[str, ...] = Field(default=(), strict=False)
    """Debian packages that hold the catalogues, fetched with apt-get and unpacked under the data folder."""
    name: str | None = None
    """Of a `hub` data set."""
    subset: str | None = None
    """Configuration of a `hub` data set, where it has several."""
    split: str = "train"
    """Split of a `hub` data set that is read."""
    revision: str | None = None
    """Commit of a `hub` data set; required there, so that a run can be repeated."""
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
        return "pairs" if self.source == "message_catalogues" or self.source_field else "text"
