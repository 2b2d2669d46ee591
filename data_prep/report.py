"""What a preparation did, for people and for programs."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.folder import CLEANING_NAME, QUARANTINE_NAME
from pretrain.data.left_out import left_out
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
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By source: tokens and documents of train and validation."""
    emptied: Mapping[str, str] = field(default_factory=dict)
    """Of sources of which nothing is left: what went, by name of the source."""
    tasks_skipped: int = 0
    """Ranges whose shards an earlier run had finished."""
    deaths: int = 0
    """Worker processes that died and were replaced."""

    def summary(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """The report in a few lines for people."""
        counts = ", ".join(f"{self.tokens[split]:,} tokens of {split}" for split in SPLITS)
        head = f"{self.folder}: {'reused' if self.reused else 'prepared'}, {counts}, vocabulary {self.vocab_size:,}"
        if self.reused:
            return [head]
        rate = self.text_bytes / 1e6 / max(self.seconds, 1e-9)
        lines = [
            head,
            f"  {sum(self.documents.values()):,} documents, {self.text_bytes / 1e6:.1f} MB of text in {self.seconds:.1f} s "
            f"({rate:.1f} MB/s, {self.backend})",
            f"  left out: {', '.join(self._left_out())}; shown in {CLEANING_NAME}",
        ]
        if damaged := self.corpus.get("damaged_files"):
            lines.append(
                f"  DAMAGED files, of which only the beginning was read: {damaged:,}; {QUARANTINE_NAME} names them"
            )
        if self.tasks_skipped:
            lines.append(f"  finished before: {self.tasks_skipped:,} ranges")
        if self.deaths:
            lines.append(f"  worker processes died {self.deaths} times and were replaced; their tasks were run again")
        if len(self.sources) > 1:
            lines += [self._source_line(name) for name in self.sources]
        return lines

    def _source_line(self, name: str) -> str:
        counts, why = self.sources[name], self.emptied.get(name)
        told = f"  {name}: {counts['tokens']:,} tokens of {counts['documents']:,} documents"
        return told if why is None else f"{told}: {why}"

    def _left_out(self) -> list[str]:
        corpus, bad = self.corpus, self.corpus["bad_documents"]
        left_out = [f"{corpus['duplicates']:,} duplicates"]
        if "near_duplicates" in corpus:
            left_out.append(f"{corpus['near_duplicates']:,} near-duplicates")
        by_step = Counter[str]()
        for reason, count in corpus["dropped"].items():
            by_step[reason.split(": ")[0]] += count  # the rules of a step are in the page
        left_out += [f"{count:,} {step}" for step, count in by_step.items()]
        left_out.append(f"{bad:,} bad" + (f" (listed in {QUARANTINE_NAME})" if bad else ""))
        return left_out

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
        deaths: int = 0,
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
            sources={name: _of_source(manifest, name) for name in manifest.sources},
            emptied={
                name: told
                for name in manifest.sources
                if not manifest.source("train", name).tokens and (told := left_out(manifest, name))
            },
            tasks_skipped=tasks_skipped,
            deaths=deaths,
        )


def _of_source(manifest: Manifest, name: str) -> dict[str, int]:
    parts = [manifest.source(split, name) for split in SPLITS]
    return {"tokens": sum(part.tokens for part in parts), "documents": sum(part.documents for part in parts)}
