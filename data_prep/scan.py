"""The first pass: from a range of files to the hashes of what may be kept of it, and to the counts of what is left out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.counts import Counts
from data_prep.dedup import KEY, as_keys, pair_keys
from data_prep.items import FileRange
from data_prep.ledger import Ledger, Record
from data_prep.minhash import SIGNATURE_VERSION, signatures
from data_prep.sieve import ContentHash, Read, batches, sieve_of
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.files import hash_bytes


@dataclass(frozen=True)
class Scan:
    """What a range holds, without its text. N documents can be read, M of them pass cleaning."""

    passed: np.ndarray
    """(N,) bool."""
    keys: np.ndarray
    """(M, K) of data_prep.dedup."""
    sizes: np.ndarray
    """(M,) uint64: UTF-8 bytes of each."""
    content: str
    """XXH3-128 over all N documents as they are read."""
    counts: Counts
    signatures: np.ndarray | None = None
    """(M, P) uint32 of data_prep.minhash, P is 0 where near-duplicates are not looked for; None of one from the ledger, where
    they stay until they are asked for."""

    @classmethod
    def of(cls, record: Record) -> "Scan":
        """From the ledger."""
        arrays, values = record.arrays, record.values
        keys = arrays["keys"].view(KEY).reshape(-1, values["columns"])
        passed = np.unpackbits(arrays["passed"], count=values["documents"]).astype(bool)
        counts = Counts.from_dict(values["counts"])
        return cls(passed, keys, arrays["sizes"], values["content"], counts)

    def keep(self, ledger: Ledger, key: str) -> None:
        """Into the ledger."""
        assert self.signatures is not None, "it comes from the ledger"
        ledger.keep(
            key,
            {
                "columns": self.keys.shape[1],
                "documents": len(self.passed),
                "content": self.content,
                "counts": self.counts.to_dict(),
            },
            passed=np.packbits(self.passed),
            keys=np.ascontiguousarray(self.keys).view("<u8").reshape(-1),
            sizes=self.sizes,
            signatures=self.signatures,
        )


@dataclass(frozen=True)
class ScanTask:
    """A range of the first pass."""

    files: FileRange
    corpus: CorpusSettings
    prepare: PrepareSettings
    sieve: str
    """Identity of the cleaning."""
    records: Path
    """Where the result is kept."""

    @property
    def key(self) -> str:
        """Under which it is kept: the files as they are now, and how they are read and cleaned."""
        reading = [
            self.corpus.model_dump(mode="json"),
            self.prepare.max_document_bytes,
            self.prepare.pair_max_characters,
        ]
        content = ["scan", self.files.to_dict(), reading, self.sieve, signing(self.prepare)]
        return hash_bytes(json.dumps(content, sort_keys=True).encode())

    def __str__(self) -> str:
        return described(self.files)


def described(files: FileRange) -> str:
    """The files of a range, for messages."""
    first, last = files.parts[0].name, files.parts[-1].name
    return first if first == last else f"{first} (or a file up to {last})"


def signing(prepare: PrepareSettings) -> list[Any] | None:
    """What signatures depend on; None where there are none."""
    dedup = prepare.dedup
    return [SIGNATURE_VERSION, dedup.shingle_words, dedup.permutations] if dedup.method == "minhash" else None


def scan_range(task: ScanTask) -> Scan:
    """Hashes the documents of a range that pass cleaning, and counts the others."""
    files, corpus, prepare = task.files, task.corpus, task.prepare
    sieve, counts, content = sieve_of(prepare, task.sieve), Counts(), ContentHash()
    passed: list[bool] = []
    digests: list[bytes] = []
    sizes: list[int] = []
    signed: list[np.ndarray] = [np.empty((0, prepare.dedup.permutations if signing(prepare) else 0), np.uint32)]
    for batch in batches(files, corpus, prepare, counts):
        for read in batch:
            content.add(read)
        kept = sieve.keep(batch, counts)
        passed += [read is not None for read in kept]
        chosen = [read for read in kept if read is not None]
        for read in chosen:
            digests += keys_of(read)
        sizes += [read.size for read in chosen]
        if signing(prepare):
            signed.append(signatures([read.document.sides[0] for read in chosen], prepare.dedup))
    columns = 1 if corpus.kind == "text" else 2
    return Scan(
        np.array(passed, dtype=bool),
        as_keys(digests, columns),
        np.array(sizes, dtype=np.uint64),
        content.value,
        counts,
        np.concatenate(signed),
    )


def keys_of(read: Read) -> list[bytes]:
    """The keys of a document: its digest, or those of the normalised sides of a pair."""
    return [read.digest] if len(read.document.sides) == 1 else pair_keys(*read.document.sides)


def scan_and_keep(task: ScanTask) -> int:
    """Scans a range and keeps the result; returns the number of documents."""
    scan = scan_range(task)
    scan.keep(Ledger(task.records), task.key)
    return len(scan.passed)
