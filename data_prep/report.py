"""What a preparation did, for people and for programs."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.folder import QUARANTINE_NAME
from pretrain.data.token_shards import SPLITS, Manifest


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation did, for the console and the caller."""

    folder: Path
    reused: bool
    """Whether the folder was finished before."""
    backend: str
    seconds: float
    tokens: Mapping[str, int]
    """By split."""
    documents: Mapping[str, int]
    """By split."""
    text_bytes: int
    vocab_size: int
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """What was read: documents, duplicates, bad_documents, and dropped ones by reason."""
    tasks_skipped: int = 0
    """Ranges whose shards an earlier run had finished."""

    def summary(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """The report in a few lines for people."""
        counts = ", ".join(f"{self.tokens[split]:,} tokens of {split}" for split in SPLITS)
        head = f"{self.folder}: {'reused' if self.reused else 'prepared'}, {counts}, vocabulary {self.vocab_size:,}"
        if self.reused:
            return [head]
        left_out = [f"{self.corpus['duplicates']:,} duplicates"]
        left_out += [f"{count:,} {reason}" for reason, count in self.corpus["dropped"].items()]
        bad = self.corpus["bad_documents"]
        rate = self.text_bytes / 1e6 / max(self.seconds, 1e-9)
        return [
            head,
            f"  {sum(self.documents.values()):,} documents, {self.text_bytes / 1e6:.1f} MB of text in {self.seconds:.1f} s "
            f"({rate:.1f} MB/s, {self.backend})",
            f"  left out: {', '.join(left_out)}; bad: {bad:,}" + (f", listed in {QUARANTINE_NAME}" if bad else ""),
        ]

    @classmethod
    def of(
        cls,
        folder: Path,
        manifest: Manifest,
        backend: str,
        started: float,
        *,
        reused: bool = False,
        tasks_skipped: int = 0,
    ) -> "PrepareReport":
        """The report on a finished folder; `started` is of time.monotonic."""
        return cls(
            folder=folder,
            reused=reused,
            backend=backend,
            seconds=time.monotonic() - started,
            tokens={split: manifest.splits[split].tokens for split in SPLITS},
            documents={split: manifest.splits[split].documents for split in SPLITS},
            text_bytes=sum(manifest.splits[split].text_bytes for split in SPLITS),
            vocab_size=manifest.vocab_size,
            corpus=manifest.corpus,
            tasks_skipped=tasks_skipped,
        )
