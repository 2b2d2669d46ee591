"""Files by path or by address: on this machine, or in a store that fsspec knows (`s3://`, `gs://`, `https://`, `memory://`).

Paths and `file://` are opened by Python itself. A file in a store is read in ranges of some megabytes, one request each, so that
a task of a large file fetches its own part alone; fsspec's own caches are not used, for they keep blocks and read ahead of the
piece. Credentials come from where a store's client looks for them (environment, its files), never from the config: settings are
written beside the data. Whatever a message shows goes through `redacted`.
"""

import io
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote

from pretrain.errors import DataError, PretrainError, StorageError
from pretrain.files import storage_error

LOCAL_BUFFER_BYTES = 1 << 20
REQUEST_BYTES = 4 << 20
"""Bytes of one ranged request: large enough that its latency does not count, small beside a task."""
ATTEMPTS = 3
FIRST_WAIT_S = 0.5

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS = re.compile(r"(://)[^/@\s]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")
_SECRET_QUERY = re.compile(r"[?&][^=&]*(sig|token|key|password|secret|credential)[^=&]*=", re.IGNORECASE)
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|(ACCESS|API)_?KEY")
_SHORTEST_SECRET = 8

Result = TypeVar("Result")


def is_remote(address: str) -> bool:
    """Whether fsspec opens it; `file://` is a path."""
    return _REMOTE.match(address) is not None and not address.startswith(("file://", "local://"))


def local_path(address: str) -> Path:
    """The path of an address that is not remote."""
    for protocol in ("file://", "local://"):
        if address.startswith(protocol):
            return Path(unquote(address.removeprefix(protocol)))
    return Path(address).expanduser()


def shown(address: str) -> str:
    """An address without a password or a query (which may be a signature)."""
    return _QUERY.sub(r"\1?...", _CREDENTIALS.sub(r"\1...@", address))


def redacted(text: str) -> str:
    """A text without passwords in addresses, their queries, and values of environment variables that hold secrets."""
    text = shown(text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name.upper()):
            text = text.replace(value, "...")
    return text


def refuse_secrets(address: str) -> None:
    """Raises DataError for an address that carries a password or a signature: settings are stored beside the data."""
    if (_CREDENTIALS.search(address) and "@" in address.split("://", 1)[1].split("/")[0]) or _SECRET_QUERY.search(
        address
    ):
        raise DataError(
            f"{redacted(address)!r} carries a password or a signature, and settings are stored with "
            "the data; give credentials in the way that the store's client reads them (environment or its own files)"
        )


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises DataError where the client package is missing, or the protocol is unknown.
    """
    import fsspec.core
    from fsspec.registry import known_implementations

    protocol = address.split("://")[0]
    if "::" in address:
        raise DataError(f"{redacted(address)!r} chains addresses with `::`, which is not read")
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError:
        entry = known_implementations.get(protocol, {}).get("class", protocol)
        package = entry.split(".")[0]
        package = "aiohttp" if package == "fsspec" and protocol.startswith("http") else package
        raise DataError(f"{redacted(address)!r} needs a client that is not installed: pip install {package}") from None
    except ValueError as error:
        raise DataError(f"{redacted(address)!r} cannot be opened: {redacted(str(error))}") from None


def asked(address: str, what: str, request: Callable[[], Result]) -> Result:
    """A request to a store, tried three times.

    Raises FileNotFoundError as it is; StorageError where it is refused or fails, with the cause and no secret.
    """
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except (FileNotFoundError, PretrainError):
            raise
        except Exception as error:  # each client has its own kinds, few of them of OSError
            told = storage_error(error, redacted(address)) if isinstance(error, OSError) else None
            if told is not None or isinstance(error, PermissionError) or attempt == ATTEMPTS - 1:
                cause = redacted(str(error)) or "no reason given"
                raise told or StorageError(
                    f"{redacted(address)}: cannot be {what} ({type(error).__name__}: {cause}); check the network, the address "
                    "and the credentials, then run it again"
                ) from None
            time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def open_binary(address: str, file_bytes: int) -> BinaryIO:
    """A file, seekable and buffered. `file_bytes` is its size as it was listed (a store is not asked again).

    Raises FileNotFoundError, StorageError.
    """
    if is_remote(address):
        return io.BufferedReader(RangedFile(address, file_bytes), REQUEST_BYTES)
    return Path(address).open("rb", buffering=LOCAL_BUFFER_BYTES)


class RangedFile(io.RawIOBase):
    """A file in a store: every read is one ranged request, nothing is kept."""

    def __init__(self, address: str, file_bytes: int) -> None:
        self._filesystem, self._path = filesystem(address)
        self._address, self._size, self._at = address, file_bytes, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The next byte that is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves without a request."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Raises FileNotFoundError, StorageError, and DataError where the server ignores ranges."""
        start, stop = self._at, min(self._at + len(buffer), self._size)
        if start >= stop:
            return 0
        content = asked(self._address, "read", lambda: self._filesystem.cat_file(self._path, start=start, end=stop))
        if len(content) > stop - start:
            raise DataError(
                f"{redacted(self._address)}: the server sends whole files where a range of bytes is asked for; download it first"
            )
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
