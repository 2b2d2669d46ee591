"""Near-duplicates and decontamination: speed, recall and false removals, on real text with planted near-duplicates.

    RAYON_NUM_THREADS=1 OMP_NUM_THREADS=1 python benchmarks/dedup.py [--corpus FOLDER ...] [--plant 2000]

Text is that of the interpreter's own standard library and packages (.py), or of the given folders (.py, .txt, .rst, .md, .html
without its tags). Copies of documents drawn from it are planted, with words replaced, left out, added or swapped at several
shares, and all are shuffled. What is true is said by code that shares nothing with what is measured: Python sets of tuples of
words. Recall: of planted pairs whose exact similarity is 0.8 or more, the share whose later document is dropped (pairs whose
earlier one is dropped as well are not counted: the rule is about documents that stay). False removals: dropped documents
whose exact similarity to the one that they are said to resemble is below 0.8.

CPU time of the process; texts are in memory. `sign`: words, shingles, signatures. `find`: bands, candidates, the candidates'
shingles again, exact similarities.
"""

import argparse
import json
import random
import re
import sys
import sysconfig
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processor import public_command
from data_prep.decontaminate import Decontaminator
from data_prep.dedup import as_keys, document_keys, first_of_equal
from data_prep.minhash import signatures
from data_prep.near_duplicates import Twins, find_twins
from data_prep.shingles import shingle_sets
from pretrain.data.dedup_settings import DecontaminationSettings, DedupSettings

SUFFIXES = (".py", ".txt", ".rst", ".md", ".html")
EDIT_SHARES = (0.0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.05)
"""Words that are edited; at 0.02 the similarity of shingles of 5 words is about 0.83."""
PASSAGE_WORDS = 40
TAGS = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.DOTALL)
WORD = re.compile(r"\w+")
PIECE = re.compile(r"\S+\s*")


@dataclass(frozen=True)
class Corpus:
    """Texts in a shuffled order, with what was planted."""

    texts: list[str]
    pairs: list[tuple[int, int]]
    """(earlier, later): a document and its edited copy."""
    shares: list[float]
    """Of edited words, of each pair."""
    megabytes: float


def main() -> None:
    """Measures, prints and writes the results file."""
    arguments = _parse()
    source = random.Random(arguments.seed)
    originals = list(_texts(arguments.corpus))
    source.shuffle(originals)
    originals = originals[: arguments.documents]
    settings = DedupSettings(method="minhash", verify=arguments.verify)
    corpus = _planted(originals, arguments.plant, source)
    results = {"dedup": _measure_dedup(corpus, settings, arguments.memory)}
    results["decontamination"] = _measure_decontamination(originals, arguments.out, source)
    now = datetime.now(UTC)
    report = {
        "benchmark": "dedup",
        "date": now.isoformat(timespec="seconds"),
        "command": public_command("python benchmarks/dedup.py", sys.argv[1:]),
        "machine": _machine(),
        "settings": settings.model_dump(),
        "results": results,
    }
    path = arguments.out / f"dedup-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    print(f"written to {path.name} in {arguments.out.name}/")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    stdlib = sysconfig.get_paths()["stdlib"]
    parser.add_argument("--corpus", nargs="+", type=Path, default=[Path(stdlib)], help="folders of text")
    parser.add_argument("--documents", type=int, default=None, help="at most so many, drawn at random")
    parser.add_argument("--plant", type=int, default=2000, help="near-duplicates")
    parser.add_argument("--verify", choices=("exact", "signature"), default="exact")
    parser.add_argument("--memory", action="store_true", help="trace the memory of `find` too (slower)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def _texts(folders: Sequence[Path]) -> Iterator[str]:
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                text = path.read_bytes().decode(errors="replace")
                text = TAGS.sub(" ", text) if path.suffix == ".html" else text
                if len(text) > 200:
                    yield text


def _planted(originals: Sequence[str], count: int, source: random.Random) -> Corpus:
    long = [at for at, text in enumerate(originals) if 500 < len(text) < 200_000]
    chosen = [source.choice(long) for _ in range(count)]
    shares = [EDIT_SHARES[at % len(EDIT_SHARES)] for at in range(count)]
    copies = [_edited(originals[at], share, originals, source) for at, share in zip(chosen, shares, strict=True)]
    order = list(range(len(originals) + count))
    source.shuffle(order)
    place = {at: row for row, at in enumerate(order)}
    everything = [*originals, *copies]
    rows = [sorted((place[at], place[len(originals) + number])) for number, at in enumerate(chosen)]
    texts = [everything[at] for at in order]
    return Corpus(
        texts, [(first, last) for first, last in rows], shares, sum(len(text.encode()) for text in texts) / 1e6
    )


def _edited(text: str, share: float, others: Sequence[str], source: random.Random) -> str:
    """A copy with a share of its words replaced, left out, doubled by a foreign one, or swapped; case changed at share 0."""
    pieces = PIECE.findall(text)
    if share == 0:
        return " ".join(piece.strip().upper() for piece in pieces)
    foreign = PIECE.findall(source.choice(others)[:5000]) or ["word "]
    for at in source.sample(range(len(pieces)), max(1, round(share * len(pieces)))):
        word = source.choice(foreign)
        kind = source.randrange(4)
        if kind == 3 and at + 1 < len(pieces):
            pieces[at], pieces[at + 1] = pieces[at + 1], pieces[at]
        else:
            pieces[at] = (word, "", pieces[at] + word, word)[kind]
    return "".join(pieces)


def _measure_dedup(corpus: Corpus, settings: DedupSettings, trace: bool) -> dict[str, Any]:
    kept = first_of_equal(as_keys([key for text in corpus.texts for key in document_keys(text)], 1))
    signatures(corpus.texts[:10], settings)  # builds tables, starts the library

    def reread(rows: np.ndarray) -> Iterator[np.ndarray]:
        for batch in np.array_split(rows, max(1, len(rows) // 100)):
            yield from shingle_sets([corpus.texts[row] for row in batch.tolist()], settings.shingle_words)

    signed, sign_s = _timed(lambda: signatures(corpus.texts, settings))
    twins, find_s = _timed(lambda: find_twins(signed, kept, settings, reread))
    found = {
        "documents": len(corpus.texts),
        "megabytes": round(corpus.megabytes, 1),
        "dropped_as_equal": int((~kept).sum()),
        "sign_cpu_s": round(sign_s, 3),
        "find_cpu_s": round(find_s, 3),
        "sign_mb_per_cpu_s": round(corpus.megabytes / sign_s, 1),
        "stage_mb_per_cpu_s": round(corpus.megabytes / (sign_s + find_s), 1),
        **twins.summary(),
        "signature_bytes_a_document": signed.itemsize * signed.shape[1],
        **_quality(corpus, kept, twins, settings.similarity),
    }
    if trace:
        tracemalloc.start()
        find_twins(signed, kept, settings, reread)
        found["find_peak_bytes_a_document"] = round(tracemalloc.get_traced_memory()[1] / len(kept))
        tracemalloc.stop()
    return found


def _quality(corpus: Corpus, kept: np.ndarray, twins: Twins, limit: float) -> dict[str, Any]:
    stays = kept & ~twins.drop
    by_share: dict[float, list[bool]] = {}
    excluded = 0
    for (earlier, later), share in zip(corpus.pairs, corpus.shares, strict=True):
        if _similarity(corpus.texts[earlier], corpus.texts[later]) < limit:
            continue
        if not stays[earlier]:
            excluded += 1
            continue
        by_share.setdefault(share, []).append(not stays[later])
    everything = [hit for hits in by_share.values() for hit in hits]
    wrong = [
        _similarity(corpus.texts[dropped], corpus.texts[other]) < limit
        for dropped, other in zip(np.flatnonzero(twins.drop).tolist(), twins.kept_of.tolist(), strict=True)
    ]
    return {
        "planted_at_or_above_limit": len(everything),
        "planted_with_earlier_dropped": excluded,
        "recall": round(float(np.mean(everything)), 5),
        "recall_by_share_of_edited_words": {
            str(share): [round(float(np.mean(hits)), 4), len(hits)] for share, hits in sorted(by_share.items())
        },
        "false_removals": int(sum(wrong)),
        "false_removals_share_of_dropped": round(sum(wrong) / max(1, len(wrong)), 5),
        "false_removals_share_of_documents": round(sum(wrong) / len(corpus.texts), 6),
    }


def _similarity(left: str, right: str, width: int = 5) -> float:
    """Exact, from sets of tuples of words, with nothing of data_prep."""
    first, second = (
        {tuple(words[at : at + width]) for at in range(max(1, len(words) - width + 1))}
        for words in (WORD.findall(text.lower()) for text in (left, right))
    )
    return len(first & second) / len(first | second)


def _measure_decontamination(originals: Sequence[str], folder: Path, source: random.Random) -> dict[str, Any]:
    """Passages of every hundredth document as eval texts, among foreign ones."""
    folder = folder / "eval_passages.jsonl"
    holders = [at for at in range(0, len(originals), 100) if len(originals[at].split()) > 10 * PASSAGE_WORDS]
    vocabulary = [f"{first}{last}" for first in "aeiou" for last in range(2000)]
    passages = [" ".join(source.choices(vocabulary, k=PASSAGE_WORDS)) for _ in range(10_000)]
    for at in holders:
        words = WORD.findall(originals[at])
        start = source.randrange(max(1, len(words) - PASSAGE_WORDS))
        passages.append(" ".join(words[start : start + PASSAGE_WORDS]))
    folder.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    try:
        decontaminator, build_s = _timed(lambda: Decontaminator(DecontaminationSettings(paths=(str(folder),))))
    finally:
        folder.unlink()
    hits, hits_s = _timed(lambda: decontaminator.hits(originals))
    megabytes = sum(len(text.encode()) for text in originals) / 1e6
    wrong = [
        hit for hit, text in zip(hits, originals, strict=True)
        if hit and f" {hit.ngram} " not in f" {' '.join(WORD.findall(text.lower()))} "
    ]  # fmt: skip
    return {
        "eval_texts": len(passages),
        "build_cpu_s": round(build_s, 3),
        "mb_per_cpu_s": round(megabytes / hits_s, 1),
        "documents_with_a_passage": len(holders),
        "of_these_found": sum(hits[at] is not None for at in holders),
        "found": sum(hit is not None for hit in hits),
        "found_without_the_words": len(wrong),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def _machine() -> dict[str, Any]:
    import torch  # for its threads and version alone; seconds to import

    from benchmarks.machine import describe_machine

    return {**describe_machine(torch.device("cpu")), "numpy": version("numpy"), "rensa": version("rensa")}


if __name__ == "__main__":
    main()
