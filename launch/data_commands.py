"""`pretrain data ...`: what lies in prepared data, and whether it is whole. Calls the rooms that know, and prints."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pretrain.data.inspection import (
    DrawnDocument,
    Lengths,
    damage_of,
    data_folder_of,
    draw_documents,
    draw_from_shard,
    lengths_of,
)
from pretrain.data.linked_shard import LINK_SUFFIX, LinkedShard
from pretrain.data.manifest import SPLITS, Manifest, read_manifest
from pretrain.data.shard_file import TokenShard
from pretrain.errors import CheckFailed, ConfigError, DataError

if TYPE_CHECKING:
    from pretrain.data.tokenizer import Tokenizer

BAR_WIDTH = 40
SAMPLE_CHARACTERS = 400
SHOWN_DAMAGE = 20


def inspect(arguments: Namespace) -> None:
    """`pretrain data inspect`."""
    console = Console(soft_wrap=True)
    for name in arguments.paths:
        path = Path(name).expanduser()
        if path.is_dir():
            _inspect_folder(path, arguments.samples, arguments.seed, console)
        elif path.exists():
            _inspect_shard(path, arguments.samples, arguments.seed, console)
        else:
            raise DataError(f"{path}: not found; name a data folder or a token shard")


def verify(arguments: Namespace) -> None:
    """`pretrain data verify`; raises CheckFailed where something is damaged."""
    folder, console = Path(arguments.folder).expanduser(), Console(soft_wrap=True)
    manifest = read_manifest(folder)
    total = sum(int(manifest.splits[split].column("file_bytes").sum()) for split in SPLITS)
    bar = (TextColumn("verifying"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    damage: list[str] = []
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("verifying", total=max(total, 1), said="")
        for size, told in damage_of(folder, manifest):
            damage += [told] if told else []
            progress.update(task, advance=size, said=f"{len(damage)} damaged" if damage else "")
    shards = sum(len(manifest.splits[split]) for split in SPLITS)
    if damage:
        shown = [*damage[:SHOWN_DAMAGE], *([f"and {len(damage) - SHOWN_DAMAGE} more"] if damage[SHOWN_DAMAGE:] else [])]
        raise CheckFailed("\n  ".join([f"{folder}: {len(damage)} of its files are damaged or missing:", *shown]))
    state = "" if manifest.complete else "; it is still growing"
    tokens = sum(manifest.splits[split].tokens for split in SPLITS)
    console.print(f"{folder}: {shards:,} shards, {tokens:,} tokens, every block matches its checksum{state}")


def import_files(arguments: Namespace) -> None:
    """`pretrain data import`."""
    from data_prep.formats.datatrove import import_datatrove
    from data_prep.formats.linking import link_megatron
    from data_prep.formats.megatron import import_megatron

    given = (arguments.files, arguments.out, arguments.tokenizer)
    common = {"end_of_text": arguments.end_of_text, "validation": arguments.validation}
    if arguments.tokens == "link":
        if arguments.format != "megatron" or arguments.document_end != "present":
            raise ConfigError(
                "--tokens link reads Megatron's files as they are: --format megatron --document-end present"
            )
        report = link_megatron(*given, **common)
    else:
        take = import_megatron if arguments.format == "megatron" else import_datatrove
        report = take(*given, document_end=arguments.document_end, **common)
    print("\n".join(report.lines()))


def export_files(arguments: Namespace) -> None:
    """`pretrain data export`."""
    from data_prep.formats.datatrove import export_datatrove
    from data_prep.formats.megatron import export_megatron

    export = export_megatron if arguments.format == "megatron" else export_datatrove
    print("\n".join(export(Path(arguments.folder).expanduser(), arguments.split, arguments.out).lines()))


def _inspect_folder(folder: Path, samples: int, seed: int, console: Console) -> None:
    manifest = read_manifest(folder)
    state = "complete" if manifest.complete else "still growing"
    console.print(
        f"{folder}: {manifest.kind}, {state}, vocabulary {manifest.vocab_size:,}, tokenizer {manifest.tokenizer_hash}"
    )
    console.print(_counts(manifest))
    tokenizer = _tokenizer(folder) if samples else None
    for split in SPLITS:
        for source in manifest.sources:
            if not len(manifest.source(split, source)):
                continue
            _print_lengths(f"{split}, {source}", lengths_of(folder, manifest, split, source), console)
            _print_documents(
                draw_documents(folder, manifest, split, source, samples, seed), manifest, tokenizer, console
            )


def _inspect_shard(path: Path, samples: int, seed: int, console: Console) -> None:
    shard = _shard(path)
    layout, origin = shard.layout, shard.origin
    console.print(
        f"{path}: {layout.tokens:,} tokens of {8 * layout.token_bytes} bits, {layout.documents:,} "
        f"{'pairs' if layout.pairs else 'documents'}, {layout.file_bytes:,} bytes, hash {shard.hash}"
    )
    console.print(f"  made from source {origin.source}, tokenizer {origin.tokenizer}, config {origin.config}")
    _print_lengths("lengths", Lengths.of([shard.lengths().astype(np.int64)], 1), console)
    folder = data_folder_of(path)
    drawn = draw_from_shard(shard, samples, seed)
    if drawn and folder is None:
        console.print(
            "  its data folder (with manifest.json and tokenizer.json) is not above it: ids are shown, not text"
        )
    manifest = None if folder is None else read_manifest(folder)
    _print_documents(drawn, manifest, None if folder is None else _tokenizer(folder), console)


def _shard(path: Path) -> TokenShard:
    if not path.name.endswith(LINK_SUFFIX):
        return TokenShard(path, "read")
    folder = data_folder_of(path)
    if folder is None:
        raise DataError(f"{path}: its data folder is not above it, whose manifest says where the tokens lie")
    return LinkedShard(path, read_manifest(folder).roots, "read")


def _tokenizer(folder: Path) -> "Tokenizer":
    from pretrain.data.tokenizer import load_tokenizer

    return load_tokenizer(folder)


def _counts(manifest: Manifest) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    table.add_column("source")
    for name in ("shards", "documents", "tokens", "MB of text", "tokens a document", "bytes a token"):
        table.add_column(name, justify="right")
    for split in SPLITS:
        for source in manifest.sources:
            record = manifest.source(split, source)
            table.add_row(
                split,
                source,
                f"{len(record):,}",
                f"{record.documents:,}",
                f"{record.tokens:,}",
                f"{record.text_bytes / 1e6:,.1f}",
                f"{record.tokens / max(record.documents, 1):,.1f}",
                f"{record.text_bytes / max(record.tokens, 1):.2f}",
            )
    return table


def _print_lengths(name: str, lengths: Lengths, console: Console) -> None:
    part = "" if lengths.shards_read == lengths.shards else f" (of {lengths.shards_read} of {lengths.shards:,} shards)"
    console.print(
        f"\n{name}: {lengths.shortest:,} to {lengths.longest:,} tokens a document, median {lengths.median:,}{part}"
    )
    most = max(lengths.counts, default=0)
    first = next((place for place, count in enumerate(lengths.counts) if count), 0)
    for power, count in list(enumerate(lengths.counts))[first:]:
        bar = "█" * round(BAR_WIDTH * count / most) or ("▏" if count else "")
        console.print(f"  {1 << power:>11,} {bar:<{BAR_WIDTH}} {count:,}", highlight=False)


def _print_documents(
    documents: Sequence[DrawnDocument], manifest: Manifest | None, tokenizer: "Tokenizer | None", console: Console
) -> None:
    for document in documents:
        console.print(
            f"\n  {document.file}, document {document.number:,}, {len(document.tokens):,} tokens", style="dim"
        )
        if manifest is None or tokenizer is None:
            text = " ".join(map(str, document.tokens[: SAMPLE_CHARACTERS // 8].tolist()))
        else:
            places = np.flatnonzero(document.tokens == manifest.special.target)
            sides = np.split(document.tokens, places) if manifest.kind == "pairs" else [document.tokens]
            text = "\n→ ".join(tokenizer.decode(side.tolist()) for side in sides)
        cut = text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]} …"
        console.print(Text("\n".join(f"  | {line}" for line in printable(cut).splitlines())))


def printable(text: str) -> str:
    """A corpus may hold control characters, which would move the cursor or colour the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else f"\\x{ord(letter):02x}" for letter in text)
