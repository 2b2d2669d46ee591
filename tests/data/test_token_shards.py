"""The shard format: what is written is read, whatever is damaged is found."""

import json
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.folder_check import check_files
from pretrain.data.token_shards import (
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    Origin,
    ShardRecord,
    Split,
    SplitRecord,
    TokenShard,
    TokenShards,
    Verify,
    read_manifest,
    read_token_bytes,
    token_dtype,
    write_manifest,
    write_shard,
)
from pretrain.errors import DataError
from tests.data.folders import ORIGIN, SPECIAL, counted_pairs, text_documents, write_folder

BLOCK = 256


@pytest.fixture
def documents() -> list[list[int]]:
    return [list(document) for document in text_documents(60, seed=1)]


@pytest.fixture
def folder(tmp_path: Path, documents: list[list[int]]) -> Path:
    write_folder(tmp_path, documents, documents[:3], block_bytes=BLOCK)
    return tmp_path


def stream_of(documents: list[list[int]]) -> np.ndarray:
    return np.array([token for document in documents for token in [*document, SPECIAL.end_of_text]])


def test_the_stream_is_that_of_the_documents_across_shards(folder: Path, documents: list[list[int]]) -> None:
    shards = TokenShards.open(folder, "train")
    stream = stream_of(documents)
    assert shards.num_tokens == len(stream) and shards.num_documents == len(documents)
    for start, stop in [(0, 1), (0, len(stream)), (5, 130), (len(stream) - 3, len(stream)), (7, 7)]:
        np.testing.assert_array_equal(shards.read(start, stop), stream[start:stop])
    starts = np.array([0, 100, 3, len(stream) - 4])
    for start, window in zip(starts, shards.read_windows(starts, 30), strict=True):
        np.testing.assert_array_equal(window, stream[start : start + 30])


def test_every_document_is_found_by_number_and_by_token(folder: Path, documents: list[list[int]]) -> None:
    shards = TokenShards.open(folder, "train")
    for number, document in enumerate(documents):
        assert shards.document(number).tolist() == [*document, SPECIAL.end_of_text]
        start, stop = shards.document_bounds(number)
        assert shards.document_at(start) == shards.document_at(stop - 1) == number
    assert shards.lengths().tolist() == [len(document) + 1 for document in documents]


def test_documents_are_found_past_the_first_anchor(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 4, 1000)
    write_shard(tmp_path, "a.tokens", np.zeros(lengths.sum(), "<u2"), lengths, text_bytes=0, origin=ORIGIN)
    shard = TokenShard(tmp_path / "a.tokens", "read")
    ends = np.cumsum(lengths)
    for document in (0, 255, 256, 257, 511, 512, 999):
        assert shard.document_bounds(document) == (ends[document] - lengths[document], ends[document])
        assert shard.document_at(int(ends[document]) - 1) == document


def test_large_vocabularies_are_stored_in_four_bytes(tmp_path: Path) -> None:
    assert token_dtype(65_536).itemsize == 2 and token_dtype(65_537).itemsize == 4
    manifest = write_folder(tmp_path, [[99_999, 3]], [[4]], vocab_size=100_000)
    assert manifest.dtype.itemsize == 4
    assert TokenShards.open(tmp_path, "train").read(0, 3).tolist() == [99_999, 3, SPECIAL.end_of_text]


def test_the_origin_is_kept(tmp_path: Path) -> None:
    origin = Origin("0a" * 16, "1b" * 16, "2c" * 16)
    write_shard(tmp_path, "a.tokens", np.zeros(3, "<u2"), np.array([3]), text_bytes=0, origin=origin)
    assert TokenShard(tmp_path / "a.tokens", "open").origin == origin


def test_pairs_keep_their_source_lengths(tmp_path: Path) -> None:
    pairs = counted_pairs(30, seed=3)
    write_folder(tmp_path, pairs, pairs[:2], kind="pairs", vocab_size=60_000)
    assert TokenShards.open(tmp_path, "train").source_lengths().tolist() == [len(source) for source, _ in pairs]


@pytest.mark.parametrize("verify", ["open", "read"])
def test_a_flipped_bit_in_any_byte_is_found_at_first_touch_and_named(tmp_path: Path, verify: Verify) -> None:
    documents = text_documents(40, seed=5, longest=60)
    write_folder(tmp_path, documents, documents[:1], shard_documents=40, block_bytes=BLOCK)
    path = next((tmp_path / "train").glob("*.tokens"))
    whole = path.read_bytes()
    for position in random.Random(0).sample(range(len(whole)), 100):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=path.name):
            shards = TokenShards.open(tmp_path, "train", verify)
            shards.read(0, shards.num_tokens)


def test_a_damaged_block_is_named_when_it_is_read_and_others_serve(folder: Path) -> None:
    path = sorted((folder / "train").glob("*.tokens"))[0]
    content = bytearray(path.read_bytes())
    content[64] ^= 1  # the first token
    path.write_bytes(content)
    shards = TokenShards.open(folder, "train")
    with pytest.raises(DataError, match=rf"{path.name}.*block 0 .*delete this file and run"):
        shards.read(0, 1)
    later = int(shards.manifest.splits["train"].shards[0].tokens)
    assert len(shards.read(later, later + 5)) == 5


def test_never_verifying_reads_the_damage(folder: Path, documents: list[list[int]]) -> None:
    path = sorted((folder / "train").glob("*.tokens"))[0]
    content = bytearray(path.read_bytes())
    content[64] ^= 1
    path.write_bytes(content)
    assert TokenShards.open(folder, "train", "never").read(0, 1)[0] == documents[0][0] ^ 1


def test_a_block_is_hashed_once(folder: Path) -> None:
    shards = TokenShards.open(folder, "train")
    shards.read(0, 5)
    path = sorted((folder / "train").glob("*.tokens"))[0]
    with path.open("r+b") as file:  # the same inode, so the map sees the change
        file.seek(64)
        first = file.read(1)[0]
        file.seek(64)
        file.write(bytes([first ^ 1]))
    shards.read(0, 5)


@pytest.mark.parametrize("size", [0, 30, 64, 200, -1])
def test_a_cut_shard_is_found(folder: Path, size: int) -> None:
    path = sorted((folder / "train").glob("*.tokens"))[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=path.name):
        TokenShards.open(folder, "train").read(0, 1)
    with pytest.raises(DataError, match=path.name):
        check_files(folder, read_manifest(folder))


def test_a_missing_shard_is_named_with_the_fix(folder: Path) -> None:
    path = sorted((folder / "validation").glob("*.tokens"))[0]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: not found.*pretrain prepare"):
        TokenShards.open(folder, "validation").read(0, 1)
    with pytest.raises(DataError, match=rf"{path.name}: not found"):
        check_files(folder, read_manifest(folder))


def test_a_shard_of_another_tokenizer_is_refused(folder: Path) -> None:
    write_manifest(folder, replace(read_manifest(folder), tokenizer_hash="99" * 16))
    with pytest.raises(DataError, match="made with tokenizer"):
        TokenShards.open(folder, "train").read(0, 1)


def test_a_shard_put_in_place_of_another_is_refused(folder: Path) -> None:
    first, second = sorted((folder / "train").glob("*.tokens"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match="manifest lists"):
        TokenShards.open(folder, "train").read(0, 1)


def test_more_shards_than_may_be_open_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]]
) -> None:
    monkeypatch.setattr("pretrain.data.token_shards.OPEN_SHARDS", 3)
    write_folder(tmp_path, documents, documents[:1], shard_documents=2)
    shards = TokenShards.open(tmp_path, "train")
    stream = stream_of(documents)
    for start in np.random.default_rng(0).integers(0, len(stream) - 10, 200).tolist():
        np.testing.assert_array_equal(shards.read(start, start + 10), stream[start : start + 10])


def test_a_manifest_survives_the_round_trip(folder: Path) -> None:
    before = read_manifest(folder)
    content, tables = (folder / MANIFEST_NAME).read_bytes(), {path.name for path in folder.glob("*.index")}
    write_manifest(folder, before)
    after = read_manifest(folder)
    assert (folder / MANIFEST_NAME).read_bytes() == content
    assert {path.name for path in folder.glob("*.index")} == tables and len(tables) == 1
    assert [after.splits[split].shards for split in SPLITS] == [before.splits[split].shards for split in SPLITS]
    assert (after.hash, after.sources, after.complete) == (before.hash, before.sources, before.complete)


def test_sources_are_streams_of_their_own(tmp_path: Path) -> None:
    whole = write_folder(tmp_path, text_documents(40, 1), text_documents(3, 2))
    named = [replace(shard, source="ab"[at % 2]) for at, shard in enumerate(whole.splits["train"].shards)]
    splits = {**whole.splits, "train": SplitRecord.of(named)}
    held_out = SplitRecord.of([replace(shard, source="b") for shard in whole.splits["validation"].shards])
    write_manifest(tmp_path, replace(whole, sources=("a", "b", "c"), splits={**splits, "validation": held_out}))
    manifest = read_manifest(tmp_path)
    for name, first in (("a", 0), ("b", 1)):
        mine = [shard for shard in named if shard.source == name]
        assert list(manifest.source("train", name).shards) == mine
        shards = TokenShards.open(tmp_path, "train", source=name)
        assert shards.num_tokens == sum(shard.tokens for shard in mine)
        alone = TokenShards.open(tmp_path, "train").shard(first if name == "a" else len(named) - len(mine))
        np.testing.assert_array_equal(shards.read(0, 5), alone.read(0, 5))
    assert manifest.source("train", "c").tokens == manifest.source("validation", "a").tokens == 0
    assert manifest.source("validation", "b").documents == 3
    with pytest.raises(DataError, match="'d' is no source of the data folder; it has a, b, c"):
        TokenShards.open(tmp_path, "train", source="d")


def test_a_growing_folder_keeps_the_table_before_the_last_for_who_is_reading(folder: Path) -> None:
    whole = read_manifest(folder)
    for shards in (1, 2, 3):
        record = SplitRecord.of(whole.splits["train"].shards[:shards])
        write_manifest(folder, replace(whole, complete=False, splits={**whole.splits, "train": record}))
        assert len(list(folder.glob("*.index"))) == 2
        assert len(read_manifest(folder).splits["train"]) == shards and not read_manifest(folder).complete
    text = (folder / MANIFEST_NAME).read_text()
    write_manifest(folder, whole)
    assert len(list(folder.glob("*.index"))) == 1
    (folder / MANIFEST_NAME).write_text(text)
    with pytest.raises(DataError, match=r"its table .* is missing"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../x.tokens", "/etc/passwd", "train/../../x", "a\0b", "", ".."])
def test_a_manifest_cannot_name_a_file_outside(folder: Path, name: str) -> None:
    manifest = read_manifest(folder)
    shards = [
        replace(shard, file=name if at == 1 else shard.file) for at, shard in enumerate(manifest.splits["train"].shards)
    ]
    write_manifest(folder, replace(manifest, splits={**manifest.splits, "train": SplitRecord.of(shards)}))
    with pytest.raises(DataError, match="not a readable manifest"):
        read_manifest(folder)


def test_a_manifest_cannot_reach_out_by_a_link(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.tokens"
    shard = sorted((folder / "train").glob("*.tokens"))[0]
    outside.write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(outside)
    with pytest.raises(DataError, match="by a link"):
        TokenShards.open(folder, "train").read(0, 1)
    with pytest.raises(DataError, match="by a link"):
        check_files(folder, read_manifest(folder))


@pytest.mark.parametrize(
    "edit", [("end_of_text", 5), ("vocab_size", 70_000), ("kind", "pairs"), ("complete", False), ("format", 3)]
)
def test_an_edited_manifest_is_refused(folder: Path, edit: tuple[str, object]) -> None:
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    place = content["special"] if edit[0] in content["special"] else content
    assert place[edit[0]] != edit[1]
    place[edit[0]] = edit[1]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not a readable manifest"):
        read_manifest(folder)


def test_any_flipped_bit_of_the_table_is_found(folder: Path) -> None:
    (path,) = folder.glob("*.index")
    content = path.read_bytes()
    for place in np.random.default_rng(3).integers(0, 8 * len(content), 50).tolist():
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable manifest"):
            read_manifest(folder)


def test_a_table_of_ten_trillion_tokens_opens_fast_and_small(tmp_path: Path) -> None:
    shards = [
        ShardRecord(f"train/web/{at:06d}-000.tokens", 270_000_000, 400_000, 10**9, 540_000_000, f"{at:032x}", "web")
        for at in range(37_038)
    ]
    splits: dict[Split, SplitRecord] = {"train": SplitRecord.of(shards), "validation": SplitRecord.of(shards[:1])}
    write_manifest(tmp_path, Manifest("text", 100, "11" * 16, SPECIAL, splits, ("web",)))
    tracemalloc.start()
    stream = TokenShards.open(tmp_path, "train", source="web")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stream.num_tokens == 37_038 * 270_000_000 > 10**13
    assert held < 10e6, f"{held:,} bytes"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}', "\xff"])
def test_a_damaged_manifest_is_told_with_the_fix(folder: Path, text: str) -> None:
    (folder / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"{MANIFEST_NAME}: not a readable manifest.*pretrain prepare"):
        read_manifest(folder)


def test_a_missing_folder_is_told_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pretrain prepare CONFIG"):
        read_manifest(tmp_path / "nowhere")


def test_token_bytes_must_fit_the_vocabulary(folder: Path) -> None:
    manifest = read_manifest(folder)
    with pytest.raises(DataError, match="token_bytes"):
        read_token_bytes(folder, manifest)
    np.ones(7, "<u2").tofile(folder / "token_bytes.bin")
    with pytest.raises(DataError, match="holds 7 entries for a vocabulary of 100"):
        read_token_bytes(folder, manifest)
    np.ones(100, "<u2").tofile(folder / "token_bytes.bin")
    assert read_token_bytes(folder, manifest).sum() == 100
