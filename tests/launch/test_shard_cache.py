"""The cache of shards on a node: bounded, verified, in the order of need; ranks see files only."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from launch import shard_cache
from launch.shard_cache import ShardCache, cache_folder, fetch_frame
from pretrain.data import local_shards
from pretrain.data.local_shards import AGENT_NAME, Position, mark_of, positions
from pretrain.data.token_shards import TokenShards, read_manifest
from pretrain.errors import DataError
from tests.data.folders import text_documents, write_folder

ADDRESS = "memory://bucket/set"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A folder of 12 training shards, and the same in a store."""
    folder = tmp_path / "source"
    write_folder(folder, text_documents(48, 1), text_documents(4, 2), shard_documents=4)
    np.ones(100, "<u2").tofile(folder / "token_bytes.bin")
    store = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/bucket/set/{path.relative_to(folder)}", path.read_bytes())
    yield folder
    store.rm("/bucket", recursive=True)


def files_of(folder: Path) -> list[str]:
    return [shard.file for shard in read_manifest(folder).splits["train"].shards]


def make_cache(tmp_path: Path, shards: float, files: list[str], lookahead: int = 3) -> ShardCache:
    """A cache with room for so many shards, of a run whose step k reads shard k."""
    folder = cache_folder(ADDRESS, str(tmp_path / "cache"))
    fetch_frame(ADDRESS, folder)
    sizes = {record.file: record.file_bytes for record in read_manifest(folder).splits["train"].shards}
    held_out = sum(record.file_bytes for record in read_manifest(folder).splits["validation"].shards)
    budget = int(shards * max(sizes.values())) + held_out
    return ShardCache(ADDRESS, folder, budget, lookahead, lambda step: [files[step % len(files)]])


def rounds(cache: ShardCache, count: int = 40, step: int = 0) -> None:
    for _ in range(count):
        cache.work(step)
        time.sleep(0.005)


def present(cache: ShardCache) -> list[str]:
    return sorted(str(path.relative_to(cache.folder)) for path in cache.folder.glob("train/*.tokens"))


def test_shards_come_in_the_order_of_need_and_go_when_they_are_behind(tmp_path: Path, source: Path) -> None:
    files = files_of(source)
    cache = make_cache(tmp_path, 3, files)
    rounds(cache)
    assert present(cache) == sorted(files[:3])
    rounds(cache, step=6)
    assert set(files[6:9]) <= set(present(cache))
    held = sum((cache.folder / file).stat().st_size for file in present(cache))
    assert held <= 3 * max((source / file).stat().st_size for file in files)
    for file in present(cache):
        assert (cache.folder / file).read_bytes() == (source / file).read_bytes()
    cache.close()


def test_a_reader_of_the_cache_reads_what_the_store_holds(tmp_path: Path, source: Path) -> None:
    files = files_of(source)
    cache = make_cache(tmp_path, 2, files, lookahead=1)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            cache.work()
            time.sleep(0.002)

    server = threading.Thread(target=serve)
    server.start()
    try:
        whole, cached = TokenShards.open(source, "train"), TokenShards.open(cache.folder, "train")
        order = np.random.default_rng(5).permutation(len(files) * 2) % len(files)
        for index in order.tolist():
            start = int(sum(record.tokens for record in read_manifest(source).splits["train"].shards[:index]))
            np.testing.assert_array_equal(cached.read(start, start + 5), whole.read(start, start + 5))
            cached._open.clear()  # as a reader does that has too many open
    finally:
        stop.set()
        server.join()
        cache.close()
    assert cache.evicted > 0 and not list((cache.folder / ".wanted").glob("*"))


def read_while_served(cache: ShardCache) -> int:
    """The first token of the set, read as a rank does."""
    found: list[int | Exception] = []

    def read() -> None:
        try:
            found.append(int(TokenShards.open(cache.folder, "train").read(0, 1)[0]))
        except DataError as error:
            found.append(error)

    reader = Thread(target=read)
    reader.start()
    while reader.is_alive():
        rounds(cache, 1)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def test_a_damaged_shard_of_the_store_reaches_no_rank_and_is_named(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "PAUSE_S", 0.001)
    files = files_of(source)
    store = fsspec.filesystem("memory")
    content = bytearray(store.cat_file(f"/bucket/set/{files[0]}"))
    content[70] ^= 1
    store.pipe_file(f"/bucket/set/{files[0]}", bytes(content))
    store.rm_file(f"/bucket/set/{files[1]}")
    cache = make_cache(tmp_path, 4, files)
    rounds(cache)
    assert not set(present(cache)) & {files[0], files[1]} and files[2] in present(cache)
    with pytest.raises(DataError, match=r"memory://bucket/set/train/000000.tokens: damaged token shard.*4 attempts"):
        read_while_served(cache)
    # Once it is mended there, it comes for the next that waits for it.
    store.pipe_file(f"/bucket/set/{files[0]}", (source / files[0]).read_bytes())
    assert read_while_served(cache) == TokenShards.open(source, "train").read(0, 1)[0]
    cache.close()


def test_a_shard_that_cannot_be_had_is_not_asked_for_without_end(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "PAUSE_S", 0.001)
    files, asked = files_of(source), []
    cache = make_cache(tmp_path, 4, files)
    monkeypatch.setattr(cache, "_system", SimpleNamespace(get_file=lambda *names: asked.append(names)))
    rounds(cache, 60)
    assert len(asked) == 4 * 4  # three training shards and that of validation, four attempts each
    cache.close()


def test_shards_of_other_data_are_not_taken_for_these(tmp_path: Path, source: Path) -> None:
    files = files_of(source)
    cache = make_cache(tmp_path, 4, files)
    rounds(cache)
    cache.close()
    (cache.folder / files[0]).write_bytes((source / files[5]).read_bytes())
    (cache.folder / "train" / "999999.tokens").write_bytes((source / files[5]).read_bytes())
    again = make_cache(tmp_path, 4, files)
    assert present(again) == sorted(files[1:3])
    rounds(again)
    assert (again.folder / files[0]).read_bytes() == (source / files[0]).read_bytes()
    assert again.fetched == 1
    again.close()


def test_a_smaller_cache_keeps_of_an_earlier_one_what_fits(tmp_path: Path, source: Path) -> None:
    files = files_of(source)
    cache = make_cache(tmp_path, 6, files, lookahead=6)
    rounds(cache)
    cache.close()
    assert len(present(cache)) == 6
    smaller = make_cache(tmp_path, 2, files)
    assert 0 < sum(path.stat().st_size for path in smaller.folder.rglob("*.tokens")) <= smaller._budget
    assert 0 < len(present(smaller)) < 6


def test_a_shard_that_somebody_deletes_comes_again(tmp_path: Path, source: Path) -> None:
    cache = make_cache(tmp_path, 4, files_of(source))
    rounds(cache)
    (cache.folder / files_of(source)[0]).unlink()
    assert read_while_served(cache) == TokenShards.open(source, "train").read(0, 1)[0]
    cache.close()


def test_a_step_ahead_is_thought_of_once(tmp_path: Path, source: Path) -> None:
    asked, files = [], files_of(source)
    cache = make_cache(tmp_path, 4, files)
    cache._needed = lambda step: asked.append(step) or [files[step]]
    rounds(cache)
    rounds(cache, step=1)
    assert asked == [0, 1, 2, 3]
    cache.close()


def test_a_rank_does_not_wait_for_an_agent_that_is_gone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_shards, "AGENT_SILENCE_S", 0.05)
    cache = make_cache(tmp_path, 4, files_of(source))
    time.sleep(0.1)
    with pytest.raises(DataError, match="has not been heard of"):
        TokenShards.open(cache.folder, "train").read(0, 1)
    cache.close()
    assert not (cache.folder / AGENT_NAME).exists()


def test_a_killed_fetch_leaves_nothing_that_looks_whole(tmp_path: Path, source: Path) -> None:
    files = files_of(source)
    cache = make_cache(tmp_path, 4, files)
    cache.close()
    torn = cache.folder / f"{files[0]}.partial"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_bytes((source / files[0]).read_bytes()[:99])
    again = make_cache(tmp_path, 4, files)
    assert not torn.exists()
    rounds(again)
    assert files[0] in present(again)
    again.close()


def test_positions_are_those_of_live_feeds(tmp_path: Path, source: Path) -> None:
    cache = make_cache(tmp_path, 4, files_of(source))
    position = Position(cache.folder)
    position.tell(7)
    (cache.folder / ".positions" / "999999999").write_text("3")
    assert positions(cache.folder) == [7]
    position.close()
    assert positions(cache.folder) == []
    cache.close()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("memory://bucket/nothing", "no prepared data"),
        ("nosuch://bucket/set", "cannot be opened"),
        ("s3://bucket/set", "s3fs"),
    ],
)
def test_an_address_without_data_is_told(tmp_path: Path, address: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        fetch_frame(address, tmp_path / "cache")


def test_the_marks_of_a_shard_keep_its_name(tmp_path: Path) -> None:
    mark = mark_of(tmp_path, ".wanted", "train/a b/000.tokens")
    assert mark.parent == tmp_path / ".wanted" and local_shards.file_of(mark) == "train/a b/000.tokens"
