"""Catalogues from Debian packages, without installing them: `apt-get download`, then the .mo files of one language are taken out.

Needs Debian or a child of it, but no root: package lists that the system lacks are fetched into the data folder, and packages are
unpacked there. Names from an archive are checked before anything is written.
"""

import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pretrain.errors import DataError
from pretrain.files import path_within, told_as_storage_error, write_atomically

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([_@][A-Za-z]+)*")
TIMEOUT_S = 600
OTHER_WAYS = "copy .mo files here and name them in corpus.paths, or use source jsonl with source_field and target_field"


def fetch_catalogues(packages: Sequence[str], language: str, folder: Path) -> list[Path]:
    """The .mo files of a language from some packages, unpacked under `folder`; those that are there are not fetched again.

    Raises:
        DataError: a name is not that of a package, apt-get is absent or fails, or a package has no such catalogue.
        StorageError: the folder cannot be written.
    """
    if not _LANGUAGE.fullmatch(language):
        raise DataError(f"prepare.corpus.target_language: {language!r} is no language code such as de or pt_BR")
    found = []
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise DataError(f"prepare.corpus.packages: {package!r} is not the name of a Debian package")
        place = folder / package / language
        if not (place / ".complete").exists():
            with told_as_storage_error(place):
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
            archive = _download(package, folder / "archives")
            _unpack(archive, language, place)
            write_atomically(place / ".complete", archive.name + "\n")
        files = sorted(place.rglob("*.mo"))
        if not files:
            raise DataError(f"prepare.corpus.packages: {package} holds no catalogue of language {language!r}")
        found += files
    shutil.rmtree(folder / "archives", ignore_errors=True)
    return found


def _download(package: str, archives: Path) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(
                f"prepare.corpus.packages: {package} is fetched with {tool}, which is not here; {OTHER_WAYS}"
            )
    with told_as_storage_error(archives):
        archives.mkdir(parents=True, exist_ok=True)
    existing = _archives(archives, package)
    if existing:
        return existing[-1]
    problem = _apt_get(["download", package], archives)
    if problem:
        # Lists of its own: the system's may be empty, and only root may refresh them.
        state = archives.resolve() / "apt"
        private = []
        for key, name in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
            (state / name / "partial").mkdir(parents=True, exist_ok=True)
            private += ["-o", f"{key}={state / name}"]
        problem = _apt_get([*private, "update"], archives) or _apt_get([*private, "download", package], archives)
    if problem:
        raise DataError(
            f"prepare.corpus.packages: apt-get cannot fetch {package}: {problem}; check the name and the network, or {OTHER_WAYS}"
        )
    return _archives(archives, package)[-1]


def _archives(folder: Path, package: str) -> list[Path]:
    return sorted(folder.glob(f"{package}_*.deb"))


def _apt_get(arguments: list[str], folder: Path) -> str | None:
    """Runs apt-get in a folder; the last line of its complaint, None where it succeeds."""
    try:
        done = subprocess.run(
            ["apt-get", "-q", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _unpack(archive: Path, language: str, place: Path) -> None:
    """Writes the catalogues of a language, and nothing else, under their paths in the archive."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as members:
                for member in members:
                    path = PurePosixPath(member.name)
                    if member.isfile() and path.suffix == ".mo" and path.parts[-3:-1] == (language, "LC_MESSAGES"):
                        content = members.extractfile(member)
                        assert content is not None
                        write_atomically(path_within(place, str(path)), content.read())
        except (tarfile.TarError, ValueError) as error:
            raise DataError(f"{archive}: not a readable package ({error}); delete it and prepare again") from None
        finally:
            process.stdout.close()
    if process.returncode not in (0, -13, 2):
        raise DataError(f"{archive}: dpkg-deb failed with code {process.returncode}; delete the file and prepare again")
