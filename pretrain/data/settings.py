"""The data part of the config: what the ranks read."""

from pathlib import Path
from typing import Literal

from pretrain.data.cache_settings import CacheSettings
from pretrain.data.order_settings import OrderSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.settings import PositiveInt, Settings


class DataSettings(Settings):
    """What the ranks read."""

    dir: str
    """Folder of the prepared data: manifest.json, tokenizer.json, token shards."""
    objective: Literal["causal", "seq2seq"] = "causal"
    sequence_length: PositiveInt
    """Tokens of a (target) sequence as the model sees it."""
    source_length: PositiveInt | None = None
    """Tokens of a source sequence (seq2seq); None: `sequence_length`."""
    document_mask: Literal["isolate", "cross"] = "isolate"
    """`isolate`: attention does not cross document ends, positions restart, and the crossing target is ignored."""
    pair_packing: Literal["packed", "single"] = "packed"
    """`packed`: neighbouring pairs share a row as long as both sides fit; they do not see each other. `single`: one a row."""
    verify: Literal["read", "open", "never"] = "read"
    """When blocks of token shards are held against their checksums: each at its first read, all at the start, or not at all."""
    order: OrderSettings = OrderSettings()
    """In which order samples are read, and from which sources."""
    manifest: Literal["finished", "follow"] = "finished"
    """`follow`: the folder may still be growing: training starts when what it needs first is there, and waits for more. The order
    is that of the finished folder. `finished`: an unfinished folder is refused."""
    prefetch: PositiveInt = 2
    """Global batches that the prefetch thread keeps ready."""
    cache: CacheSettings | None = None
    """A cache of shards on each node's disk, for a `dir` on a slow file system or at an address (s3://bucket/folder); None:
    shards are read where they lie."""
    prepare: PrepareSettings | None = None
    """How the folder is made; None: it must exist."""

    @property
    def folder(self) -> Path:
        """`dir` as a path, relative to the folder where the command is started."""
        return Path(self.dir).expanduser()
