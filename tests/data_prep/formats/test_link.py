import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.formats.linking import link_megatron
from data_prep.formats.megatron import export_megatron, import_megatron
from pretrain.data.folder_check import check_files
from pretrain.data.linked_shard import LinkedShard, Target, write_link
from pretrain.data.token_shards import Origin, TokenShards, read_manifest, write_manifest
from pretrain.errors import DataError
from tests.data_prep.formats.samples import GOLDEN, content, documents, stored, write_megatron, write_tokenizer

ORIGIN = Origin("11" * 16, "22" * 16, "33" * 16)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def linked(tmp_path: Path, tokenizer: Path) -> Path:
    """A folder of several shards; its tokens lie in given/a.bin and given/b.bin."""
    (tmp_path / "given").mkdir()
    write_megatron(tmp_path / "given/a", documents()[:25])
    write_megatron(tmp_path / "given/b", documents()[25:], "<i4")
    names = [tmp_path / "given/a", tmp_path / "given/b.bin"]
    link_megatron(names, tmp_path / "data", tokenizer, validation=0.2, shard_tokens=90)
    return tmp_path / "data"


def test_linked_files_are_read_as_imported_ones_are(tmp_path: Path, tokenizer: Path) -> None:
    report = link_megatron([GOLDEN / "small"], tmp_path / "a", tokenizer, validation=0.0, shard_tokens=90)
    import_megatron([GOLDEN / "small"], tmp_path / "b", tokenizer, validation=0.0, shard_tokens=90)
    a, b = TokenShards.open(tmp_path / "a", "train"), TokenShards.open(tmp_path / "b", "train")
    assert stored(tmp_path / "a") == documents() and a.num_shards == b.num_shards > 4
    assert a.read(0, a.num_tokens).tolist() == b.read(0, b.num_tokens).tolist()
    starts = np.arange(0, a.num_tokens, 13)
    for x, y in zip(a.read_windows(starts, 40), b.read_windows(starts, 40), strict=True):
        assert x.tolist() == y.tolist()
    for token in range(a.num_tokens):
        assert a.document_at(token) == b.document_at(token)
    assert a.lengths().tolist() == b.lengths().tolist()
    assert a.manifest.splits["train"].text_bytes == b.manifest.splits["train"].text_bytes
    assert report.notes == (f"tokens stay in {GOLDEN.resolve()}; they must not change",)


def test_a_link_copies_no_token(linked: Path) -> None:
    sizes = [path.stat().st_size for path in linked.glob("*/*")]
    assert all(path.suffix == ".tokens-index" for path in linked.glob("*/*"))
    manifest = read_manifest(linked)
    for split in ("train", "validation"):
        shards = TokenShards.open(linked, split)
        for index in range(shards.num_shards):
            shard = shards.shard(index)
            assert isinstance(shard, LinkedShard)
            assert shard.read(0, shard.layout.tokens).base is not None, "a view of the map"
    assert sum(sizes) == sum(
        int(manifest.splits[split].column("file_bytes").sum()) for split in ("train", "validation")
    )
    check_files(linked, manifest)


def test_the_end_of_every_file_is_held_out(linked: Path) -> None:
    assert stored(linked) == documents()[:20] + documents()[25:37]
    assert stored(linked, "validation") == documents()[20:25] + documents()[37:]


def test_given_files_are_held_out_and_sentences_and_empty_documents_do_not_matter(
    tmp_path: Path, tokenizer: Path
) -> None:
    given = documents()
    write_megatron(tmp_path / "a", [given[0], [], given[1], []])
    write_megatron(tmp_path / "b", [[], given[2]])
    report = link_megatron([tmp_path / "a"], tmp_path / "data", tokenizer, validation=[tmp_path / "b"])
    assert stored(tmp_path / "data") == given[:2] and stored(tmp_path / "data", "validation") == given[2:3]
    assert report.empty_documents == 3


def test_a_linked_folder_is_exported_as_any_other(tmp_path: Path, tokenizer: Path) -> None:
    link_megatron([GOLDEN / "small"], tmp_path / "data", tokenizer, validation=0.0)
    export_megatron(tmp_path / "data", "train", tmp_path / "x")
    for ending in (".bin", ".idx"):
        assert (tmp_path / f"x{ending}").read_bytes() == (GOLDEN / f"small{ending}").read_bytes()


def test_every_flipped_bit_is_found_at_the_first_touch(linked: Path) -> None:
    source, found = random.Random(0), 0
    files = [*sorted(linked.glob("train/*")), linked.parent / "given/a.bin", linked.parent / "given/b.bin"]
    for _ in range(100):
        path = source.choice(files)
        before = path.read_bytes()
        changed = bytearray(before)
        at = source.randrange(len(changed))
        changed[at] ^= 1 << source.randrange(8)
        path.write_bytes(changed)
        try:
            for split in ("train", "validation"):
                stored(linked, split)
        except DataError as error:
            assert str(path) in str(error) and ";" in str(error)
            found += 1
        path.write_bytes(before)
    assert found == 100


@pytest.mark.parametrize("size", [0, 10, 330])
def test_a_cut_or_grown_file_is_found_when_it_is_opened(linked: Path, size: int) -> None:
    path = linked.parent / "given/a.bin"
    before = path.read_bytes()
    for changed in (before[:size], before + bytes(2)):
        path.write_bytes(changed)
        for act in (
            lambda: TokenShards.open(linked, "train").read(0, 1),
            lambda: check_files(linked, read_manifest(linked)),
        ):
            with pytest.raises(DataError, match=r"a\.bin: not the file that was linked"):
                act()


def test_damage_in_a_linked_file_is_found_before_a_run_starts(linked: Path) -> None:
    path = linked.parent / "given/b.bin"
    changed = bytearray(path.read_bytes())
    changed[100] ^= 4
    path.write_bytes(changed)
    with pytest.raises(DataError, match=r"b\.bin: .*does not match its checksum"):
        check_files(linked, read_manifest(linked))


def test_damage_in_our_own_file_is_told_with_its_cure(linked: Path) -> None:
    shard = sorted(linked.glob("train/*"))[0]
    before = shard.read_bytes()
    for changed, message in [
        (before[:40], "cut off"),
        (before[:-8], "its header says"),
        (b"x" + before[1:], "no linked"),
    ]:
        shard.write_bytes(changed)
        with pytest.raises(DataError, match=rf"{message}.*link the files anew"):
            TokenShards.open(linked, "train").read(0, 1)
    shard.unlink()
    with pytest.raises(DataError, match="not found"):
        TokenShards.open(linked, "train").read(0, 1)


def test_files_may_move_with_their_root_and_the_data_stay_the_same(linked: Path) -> None:
    before, expected = read_manifest(linked), stored(linked)
    (linked.parent / "given").rename(linked.parent / "moved")
    with pytest.raises(DataError, match=r"a\.bin: not found.*roots"):
        TokenShards.open(linked, "train").read(0, 1)
    write_manifest(linked, replace(before, roots=(str(linked.parent / "moved"),)))
    assert stored(linked) == expected and read_manifest(linked).hash == before.hash


def test_roots_must_be_absolute_and_names_may_not_leave_them(linked: Path, tmp_path: Path) -> None:
    plain = content(linked)
    (linked / "manifest.json").write_text(json.dumps({**plain, "roots": ["given"]}))
    with pytest.raises(DataError, match="roots must be absolute"):
        read_manifest(linked)
    (linked / "manifest.json").write_text(json.dumps({**plain, "roots": []}))
    with pytest.raises(DataError, match=r"lies? in root 0"):
        TokenShards.open(linked, "train").read(0, 1)
    tokens = np.arange(4, dtype="<u2")
    for name in ("../outside.bin", "/etc/passwd", ""):
        write_link(
            tmp_path, "x.tokens-index", Target(0, name, 0, 8), tokens, np.array([4]), text_bytes=4, origin=ORIGIN
        )
        with pytest.raises(DataError, match="outside of its root"):
            LinkedShard(tmp_path / "x.tokens-index", [str(linked)], "read")


def test_what_would_need_a_copy_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    write_megatron(tmp_path / "wide", documents(), "<i8")
    with pytest.raises(DataError, match=r"int64, only uint16 and int32.*import"):
        link_megatron([tmp_path / "wide"], tmp_path / "data", tokenizer)
    write_megatron(tmp_path / "open", [document[:-1] for document in documents()])
    with pytest.raises(DataError, match="40 of 40 documents do not end"):
        link_megatron([tmp_path / "open"], tmp_path / "data", tokenizer)


def test_tokens_that_begin_within_a_page_are_mapped(tmp_path: Path) -> None:
    """A map begins at a page; shards begin where a document does."""
    tokens = np.random.default_rng(0).integers(0, 1 << 16, 9_000).astype("<u2")
    tokens.tofile(tmp_path / "x.bin")
    for first in (0, 1, 2_047, 2_048, 2_049, 8_999):
        target = Target(0, "x.bin", 2 * first, tokens.nbytes)
        part = tokens[first:]
        write_link(
            tmp_path,
            "x.tokens-index",
            target,
            part,
            np.array([len(part)]),
            text_bytes=0,
            origin=ORIGIN,
            block_bytes=1 << 10,
        )
        shard = LinkedShard(tmp_path / "x.tokens-index", [str(tmp_path)], "open")
        assert shard.read(0, len(part)).tolist() == part.tolist()
        assert sum(shard.verified) == shard.layout.blocks
