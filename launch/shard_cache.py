"""A node's cache of token shards: what is fetched next, what goes, and that nothing damaged is ever seen by a rank.

`ShardCache.work` is one round: what ranks wait for comes first, then what the order asks for in the next steps, in that order, as
far as it fits; what is asked for last goes first when room is needed. A shard is fetched under a temporary name, held against the
manifest and all of its checksums, and renamed. Fetching is by fsspec: any store that it knows, or a slow file system.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from data_prep.addresses import filesystem
from pretrain.data.local_shards import AGENT_NAME, FAILED_NAME, WANTED_NAME, file_of, mark_of, positions
from pretrain.data.manifest import MANIFEST_NAME, SPLITS, TOKEN_BYTES_NAME, TOKENIZER_NAME, read_manifest
from pretrain.data.shard_file import TokenShard
from pretrain.errors import DataError, PretrainError
from pretrain.files import hash_bytes, path_within, write_atomically

FETCHES = 4
"""Shards fetched at once: a store answers one request slowly and several as fast."""
ATTEMPTS = 4
PAUSE_S = 0.2
"""Before a second attempt; it doubles with each."""
RETRY_S = 5.0
"""After a shard could not be had, until it is fetched ahead again; a rank that waits for it has it tried at once."""

Needed = Callable[[int], Sequence[str]]
"""Files of the shards that a step reads."""


def cache_folder(address: str, cache_dir: str) -> Path:
    """Where the shards of an address lie on this node."""
    return Path(cache_dir).expanduser().absolute() / hash_bytes(address.rstrip("/").encode())[:16]


def fetch_frame(address: str, folder: Path) -> None:
    """Copies what a data folder has beside its shards: manifest, table, tokenizer. The manifest comes last.

    Raises DataError where the address holds no prepared data, or cannot be reached.
    """
    system, root = filesystem(address)
    try:
        manifest = system.cat_file(f"{root}/{MANIFEST_NAME}")
        index = json.loads(manifest)["index"]["file"]
        if json.loads(manifest).get("roots"):
            raise DataError(
                f"data.dir={address}: its tokens lie in other files, which a cache cannot fetch; set data.cache=null"
            )
        for name in (index, TOKENIZER_NAME, TOKEN_BYTES_NAME):
            write_atomically(path_within(folder, name), system.cat_file(f"{root}/{name}"))
    except FileNotFoundError as error:
        raise DataError(f"data.dir={address}: no prepared data: {error} is not there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"data.dir={address}: {MANIFEST_NAME} is not readable ({error})") from None
    except OSError as error:
        raise DataError(f"data.dir={address}: cannot be read: {error}") from None
    write_atomically(folder / MANIFEST_NAME, manifest)


class ShardCache:
    """The shards of one data set on this node."""

    def __init__(self, address: str, folder: Path, budget_bytes: int, lookahead_steps: int, needed: Needed) -> None:
        """A cache that `fetch_frame` has begun.

        Args:
            address: of the data folder.
            folder: of the cache.
            budget_bytes: most that shards may take.
            lookahead_steps: steps ahead of the ranks that are thought of.
            needed: what a step reads.
        """
        self.folder, self._address = folder, address
        self._system, self._root = filesystem(address)
        self._budget, self._lookahead, self._needed = budget_bytes, lookahead_steps, needed
        manifest = read_manifest(folder)
        self._records = {record.file: record for split in SPLITS for record in manifest.splits[split].shards}
        self._validation = [record.file for record in manifest.splits["validation"].shards]
        self._pool = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._fetching: dict[str, Future[None]] = {}
        self._retry_at: dict[str, float] = {}
        self._files_of: dict[int, Sequence[str]] = {}
        self._held = self._sound_shards()
        self.fetched = self.evicted = 0
        """Shards so far."""
        for kind in (WANTED_NAME, FAILED_NAME):
            for mark in (folder / kind).glob("*"):
                mark.unlink(missing_ok=True)
        self.beat()

    def _sound_shards(self) -> set[str]:
        """Shards of an earlier run that are those of the manifest, as far as they fit; what else lies there is deleted."""
        for partial in self.folder.rglob("*.partial"):
            partial.unlink(missing_ok=True)
        held, room = set(), self._budget
        for path in self.folder.rglob("*.tokens"):
            record = self._records.get(str(path.relative_to(self.folder)))
            with suppress(PretrainError):
                if record and record.file_bytes <= room and TokenShard(path, "never").hash == record.hash:
                    held.add(record.file)
                    room -= record.file_bytes
                    continue
            path.unlink(missing_ok=True)
        return held

    def beat(self) -> None:
        """Tells the ranks that the agent lives."""
        write_atomically(self.folder / AGENT_NAME, json.dumps({"fetched": self.fetched, "evicted": self.evicted}))

    def work(self, first_step: int = 0) -> None:
        """One round; returns at once, fetching goes on. Ranks that have not begun stand at `first_step`."""
        self._collect()
        wanted = [file_of(mark) for mark in sorted((self.folder / WANTED_NAME).glob("*"))]
        ahead = self.upcoming(first_step)
        for file in wanted:
            if file not in self._records:
                self._fail(file, "the manifest does not list it")
        asked = [file for file in dict.fromkeys([*wanted, *ahead]) if file in self._records]
        room = self._budget
        for place, file in enumerate(asked):
            room -= self._records[file].file_bytes
            # What a rank waits for comes whatever the budget, or the run would stand still.
            if room < 0 and place >= max(len(wanted), 1):
                break
            if self._is_held(file, place < len(wanted)) or self._is_put_off(file):
                continue
            if len(self._fetching) >= FETCHES and place >= len(wanted):
                break
            self._make_room(self._records[file].file_bytes, asked, place)
            self._fetching[file] = self._pool.submit(self._fetch, file)

    def _is_held(self, file: str, waited_for: bool) -> bool:
        """Whether a shard is there or on its way. One that a rank waits for is looked at: somebody may have deleted it."""
        if waited_for and file in self._held and not (self.folder / file).exists():
            self._held.discard(file)
        return file in self._held or file in self._fetching

    def _is_put_off(self, file: str) -> bool:
        """Whether a shard could not be had a moment ago. A rank that begins to wait for it takes the mark of that away."""
        return time.monotonic() < self._retry_at.get(file, 0.0) and mark_of(self.folder, FAILED_NAME, file).exists()

    def upcoming(self, first_step: int) -> list[str]:
        """Shards of the next steps in the order of their first use; those of the validation set before all."""
        here = positions(self.folder) or [first_step]
        found = dict.fromkeys(self._validation)
        steps = range(min(here), max(here) + self._lookahead)
        self._files_of = {step: self._files_of.get(step) or self._needed(step) for step in steps}
        for files in self._files_of.values():
            found.update(dict.fromkeys(files))
        return list(found)

    def close(self) -> None:
        """Ends the fetching; shards stay for the next launch."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        (self.folder / AGENT_NAME).unlink(missing_ok=True)

    def _collect(self) -> None:
        for file, future in list(self._fetching.items()):
            if not future.done():
                continue
            del self._fetching[file]
            error = future.exception()
            if error is None:
                self.fetched += 1
                self._held.add(file)
                mark_of(self.folder, FAILED_NAME, file).unlink(missing_ok=True)
            else:
                self._retry_at[file] = time.monotonic() + RETRY_S
                self._fail(file, str(error))

    def _fail(self, file: str, reason: str) -> None:
        write_atomically(mark_of(self.folder, FAILED_NAME, file), reason)

    def _make_room(self, size: int, asked: Sequence[str], place: int) -> None:
        """Deletes shards that are asked for later than the one at `place`, or not at all, until so many bytes fit."""
        used = sum(self._records[file].file_bytes for file in [*self._held, *self._fetching])
        order = {file: at for at, file in enumerate(asked)}
        last_first = sorted(self._held, key=lambda file: order.get(file, len(asked)), reverse=True)
        for file in last_first:
            if used + size <= self._budget or order.get(file, len(asked)) <= place:
                return
            (self.folder / file).unlink(missing_ok=True)
            self._held.discard(file)
            used -= self._records[file].file_bytes
            self.evicted += 1

    def _fetch(self, file: str) -> None:
        """Brings a shard, whole and verified, or raises DataError."""
        path, record = path_within(self.folder, file), self._records[file]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        told = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                self._system.get_file(f"{self._root}/{file}", str(partial))
                if TokenShard(partial, "open").hash != record.hash:
                    raise DataError("it is not the shard that the manifest lists")
                partial.replace(path)
                return
            except (OSError, PretrainError) as error:
                told = str(error).replace(str(partial), f"{self._address.rstrip('/')}/{file}")
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
        raise DataError(f"{told} ({ATTEMPTS} attempts)")
