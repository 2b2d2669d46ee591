"""How fast the cleaning chain is, as a whole and by its steps: MB of text per CPU-second, medians of interleaved rounds.

    python benchmarks/cleaning.py --document-bytes 3000
    python benchmarks/cleaning.py --document-bytes 100000 --paths /usr/share/doc

Text is that of the docstrings of the interpreter's standard library, or of the .txt, .md and .html files under `--paths` (tags
removed), cut at line ends into documents. The settings are the published ones; with `--thresholds lenient` nothing is removed, so
that every document pays for every step. CPU time is this process's; a busy machine still slows caches, so compare within a run.
"""

import argparse
import ast
import html
import json
import re
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.cleaning.chain import Chain
from data_prep.cleaning.tally import Tally
from pretrain.data.cleaning_settings import CleaningSettings

STEPS = tuple(CleaningSettings.model_fields)
LENIENT: dict[str, dict[str, Any]] = {
    "language": {
        "min_score": 0.0,
        "languages": ["en", "de", "fr", "es", "it", "ja", "zh", "ru", "ca", "pt", "la", "no"],
    },
    "gopher_quality": {
        "min_words": 0,
        "max_symbols_per_word": 100,
        "max_bullet_lines": 1.0,
        "max_ellipsis_lines": 1.0,
        "min_alphabetic_words": 0.3,
        "min_stop_words": 1,
        "min_mean_word_characters": 0.0,
        "max_mean_word_characters": 1000.0,
    },
    "gopher_repetition": {
        **{f"duplicate_{kind}": 1.0 for kind in ("lines", "paragraphs", "line_characters", "paragraph_characters")},
        **{f"top_{size}gram_characters": 0.6 for size in (2, 3, 4)},
        **{f"duplicate_{size}gram_characters": 0.6 for size in range(5, 11)},
    },
    "c4": {"line_endings": "any", "min_line_words": 1, "min_sentences": 0, "code_characters": ""},
    "fineweb": {"punctuated_lines": 0.0, "duplicate_line_characters": 1.0, "short_lines": 1.0},
    "personal_data": {},
}


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    texts = list(_documents(arguments))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    base = LENIENT if arguments.thresholds == "lenient" else {step: {} for step in STEPS}
    chains = {"whole chain": Chain(CleaningSettings.model_validate(base))}
    chains |= {f"{step} alone": Chain(CleaningSettings.model_validate({step: base[step]})) for step in STEPS}
    runs: dict[str, Callable[[], Any]] = {name: _many(chain, texts) for name, chain in chains.items()}
    runs["whole chain, one document a call"] = _one_by_one(chains["whole chain"], texts)
    tally = Tally()
    kept = chains["whole chain"].run_many(texts, tally)
    rates = _measured(runs, megabytes, arguments.rounds)
    console = Console(width=110)
    title = (
        f"{len(texts):,} documents, {megabytes:.1f} MB, {arguments.thresholds} thresholds, {arguments.rounds} rounds"
    )
    table = Table("", "MB per CPU-s", "least", "most", "times the whole chain", title=title)
    whole = statistics.median(rates["whole chain"])
    for name, found in rates.items():
        middle = statistics.median(found)
        table.add_row(name, f"{middle:.1f}", f"{min(found):.1f}", f"{max(found):.1f}", f"{middle / whole:.2f}")
    console.print(table)
    console.print({name: (step.documents_in, step.documents_out) for name, step in tally.steps.items()})
    if arguments.out:
        command = ["python", "benchmarks/cleaning.py", *sys.argv[1:]]
        told = {"command": command, "documents": len(kept), "megabytes": megabytes, "rates": rates}
        arguments.out.write_text(json.dumps(told, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document-bytes", type=int, default=3000)
    parser.add_argument("--megabytes", type=float, default=4.0, help="of text, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--thresholds", choices=["published", "lenient"], default="published")
    parser.add_argument("--paths", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


def _measured(runs: dict[str, Callable[[], Any]], megabytes: float, rounds: int) -> dict[str, list[float]]:
    """MB per CPU-second of each round, after one that is not counted; each round takes all in turn."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if round_:
                rates[name].append(megabytes / max(time.process_time() - started, 1e-9))
    return rates


def _many(chain: Chain, texts: list[str]) -> Callable[[], Any]:
    return lambda: chain.run_many(texts, Tally())


def _one_by_one(chain: Chain, texts: list[str]) -> Callable[[], Any]:
    def run() -> None:
        tally = Tally()
        for text in texts:
            chain.run(text, tally)

    return run


def _documents(arguments: argparse.Namespace) -> Iterator[str]:
    """Text cut at the first line end after `--document-bytes` characters."""
    pieces, size = [], 0
    for text in _local_texts(arguments.paths) if arguments.paths else _docstrings():
        pieces.append(text)
        size += len(text)
        if size > arguments.megabytes * 1e6:
            break
    text, at = "\n\n".join(pieces), 0
    while at < len(text):
        end = text.find("\n", at + arguments.document_bytes)
        end = len(text) if end < 0 else end
        yield text[at:end]
        at = end + 1


def _docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (told := ast.get_docstring(node)):
                yield told


def _local_texts(paths: list[Path]) -> Iterator[str]:
    for root in paths:
        for path in sorted(root.rglob("*") if root.is_dir() else [root]):
            if path.suffix in (".txt", ".md", ".html") and path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                yield _without_tags(text) if path.suffix == ".html" else text


def _without_tags(text: str) -> str:
    text = re.sub(r"(?s)<(script|style).*?</\1>", "", text)
    text = re.sub(r"(?i)</?(p|br|div|li|h\d|tr|pre|dd|dt)\b[^>]*>", "\n", text)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


if __name__ == "__main__":
    main()
