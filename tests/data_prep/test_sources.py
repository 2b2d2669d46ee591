"""Several sources, one pass or two, and what stops a preparation on its way."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest

import pretrain.files
from data_prep.executors import InProcess
from data_prep.items import FileRange, Part
from data_prep.ranges import interleaved
from data_prep.report import PrepareReport
from pretrain.data.plan import build_plan
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards, read_manifest
from pretrain.data.tokenizer import load_tokenizer
from pretrain.errors import DataError, StorageError
from tests.data_prep.corpora import data_settings, output, run, text, write_texts


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    large, small = write_texts(folder / "large", 24), write_texts(folder / "small", 0)
    for number in range(6):
        (small / f"{number}.txt").write_text(text(100 + number))
    (small / "twice.txt").write_text(text(3))  # stands in the other source as well
    return {"large": large, "small": small}


def of_sources(folder: Path, corpora: dict[str, Path], **changes: object) -> DataSettings:
    """Settings of several sources, each a folder of text files."""
    data = data_settings(folder, next(iter(corpora.values())), task_bytes=4000)
    named = {name: {"source": "text", "paths": [str(path)]} for name, path in corpora.items()}
    assert data.prepare is not None
    prepare = data.prepare.model_dump(mode="json") | {"corpus": None, "corpora": named} | changes
    return DataSettings.model_validate({**data.model_dump(mode="json"), "prepare": prepare})


@pytest.fixture(scope="module")
def prepared(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareReport]:
    folder = tmp_path_factory.mktemp("sources") / "data"
    return folder, run(of_sources(folder, corpora))


def texts(folder: Path, split: str, source: str | None = None) -> list[str]:
    """The documents of a split, decoded."""
    shards, tokenizer = TokenShards.open(folder, split, "open", source), load_tokenizer(folder)  # type: ignore[arg-type]
    return [tokenizer.decode(shards.document(number).tolist()) for number in range(shards.num_documents)]


def test_each_source_is_a_stream_of_its_own(prepared: tuple[Path, PrepareReport], corpora: dict[str, Path]) -> None:
    folder, report = prepared
    for name, path in corpora.items():
        expected = {file.read_text() for file in path.iterdir()}
        found = texts(folder, "train", name) + texts(folder, "validation", name)
        assert found and set(found) <= expected and len(found) == report.sources[name]["documents"]
    assert sum(report.sources[name]["documents"] for name in corpora) == 30, "one of 31 is a duplicate"
    assert report.corpus["duplicates"] == 1
    assert sum(part["duplicates"] for part in report.corpus["sources"].values()) == 1
    assert {path.parent.name for path in folder.glob("train/*/*.tokens")} == set(corpora)
    assert any("small: " in line for line in report.lines())


def test_an_emptied_source_is_told_with_the_step_that_emptied_it(corpora: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    for number in range(3):
        (tmp_path / f"short/{number}.txt").write_text(f"only {number} words")
    rule = {"min_words": 5, "min_stop_words": 0, "min_alphabetic_words": 0.0}
    cleaning = {"gopher_quality": rule}
    data = of_sources(tmp_path / "data", {"large": corpora["large"], "short": tmp_path / "short"}, cleaning=cleaning)
    why = "short: 0 tokens of 0 documents: of its 3 documents, preparation left out 3 dropped as gopher_quality: too_few_words; "
    assert any(why in line for line in run(data).lines())
    with pytest.raises(
        DataError, match=r"source short is shorter .* 3 dropped as gopher_quality: too_few_words; loosen"
    ):
        build_plan(with_weights(data, {"large": 0.5, "short": 0.5}), read_manifest(data.folder), 7, {})


def with_weights(data: DataSettings, weights: dict[str, float]) -> DataSettings:
    return data.model_copy(update={"order": data.order.model_copy(update={"weights": weights})})


def test_several_sources_are_the_same_bytes_for_two_workers(
    prepared: tuple[Path, PrepareReport], corpora: dict[str, Path], tmp_path: Path
) -> None:
    run(of_sources(tmp_path / "data", corpora), workers=2)
    assert whole(tmp_path / "data") == whole(prepared[0])


def whole(folder: Path) -> dict[str, bytes]:
    """What a reader of the folder sees, shards of named sources included."""
    shards = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tokens")}
    index = next(folder.glob("shards-*.index"))
    return {**output(folder), **shards, index.name: index.read_bytes()}


def test_ranges_are_interleaved_in_proportion_to_the_sources() -> None:
    def ranges(name: str, sizes: list[int]) -> list[FileRange]:
        return [FileRange.of(at, [Part("", "", 0, 1, size, size, "")], name) for at, size in enumerate(sizes)]

    plan = interleaved({"a": ranges("a", [10] * 30), "b": ranges("b", [10] * 10), "c": ranges("c", [7])})
    for stop in range(4, 42, 4):
        counts = [sum(files.source == name for files in plan[:stop]) for name in "ab"]
        assert abs(counts[0] - 3 * counts[1]) <= 3, stop
    for name in "abc":
        assert [files.index for files in plan if files.source == name] == sorted(
            files.index for files in plan if files.source == name
        )


def test_a_source_of_one_range_stands_in_the_middle_of_the_others() -> None:
    ranges = [FileRange.of(at, (Part("", "", 0, 1, 10, 10, ""),), "a") for at in range(10)]
    plan = interleaved({"a": ranges, "b": [FileRange.of(0, (Part("", "", 0, 1, 7, 7, ""),), "b")]})
    assert [files.source for files in plan] == ["a"] * 5 + ["b"] + ["a"] * 5


def once(folder: Path, corpora: dict[str, Path], tokenizer: Path, **changes: object) -> DataSettings:
    """Settings that need one pass."""
    return of_sources(folder, corpora, dedup={"method": "none"}, tokenizer={"path": str(tokenizer)}, **changes)


def test_one_pass_writes_the_documents_of_two(
    prepared: tuple[Path, PrepareReport],
    corpora: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    execute = InProcess.run

    def noted(self: InProcess, function, tasks):  # type: ignore[no-untyped-def]
        ran.append(function.__name__)
        return execute(self, function, tasks)

    monkeypatch.setattr(InProcess, "run", noted)
    report = run(once(tmp_path / "data", corpora, prepared[0] / "tokenizer.json"))
    assert ran == ["shard_and_keep"]
    assert report.corpus["documents"] == 31 and report.corpus["duplicates"] == 0
    for split in ("train", "validation"):
        found, expected = set(texts(tmp_path / "data", split)), set(texts(prepared[0], split))
        assert found == expected


def test_one_pass_is_taken_up_where_it_was_left_to_the_same_bytes(
    prepared: tuple[Path, PrepareReport], corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = prepared[0] / "tokenizer.json"
    run(once(tmp_path / "whole", corpora, tokenizer))
    with monkeypatch.context() as patched:
        fill_the_disk_after(patched, shards=4)
        with pytest.raises(StorageError, match="no space is left on the disk"):
            run(once(tmp_path / "data", corpora, tokenizer))
    assert not read_manifest(tmp_path / "data").complete
    report = run(once(tmp_path / "data", corpora, tokenizer))
    assert report.tasks_skipped >= 2 and any("finished before" in line for line in report.lines())
    assert whole(tmp_path / "data") == whole(tmp_path / "whole")


def test_a_full_disk_is_told_and_the_next_run_goes_on(
    prepared: tuple[Path, PrepareReport], corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fill_the_disk_after(patched, shards=5)
        with pytest.raises(StorageError, match="no space is left on the disk"):
            run(of_sources(tmp_path / "data", corpora))
    assert run(of_sources(tmp_path / "data", corpora)).tasks_skipped >= 2
    assert whole(tmp_path / "data") == whole(prepared[0])


def fill_the_disk_after(patched: pytest.MonkeyPatch, shards: int) -> None:
    written: list[str] = []
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if str(target).endswith(".tokens"):
            written.append(str(target))
            if len(written) > shards:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    patched.setattr(pretrain.files.Path, "replace", full)


def test_a_compressed_range_fills_several_shards_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text(at)}) + "\n" for at in range(60)).encode()))
    run(data_settings(tmp_path / "data", path, "jsonl", shard_tokens=3000, task_bytes=1 << 20))
    shards = read_manifest(tmp_path / "data").splits["train"].shards
    assert len(shards) > 5 and {shard.file[:12] for shard in shards} == {"train/000000"}
    found = texts(tmp_path / "data", "train") + texts(tmp_path / "data", "validation")
    assert sorted(found) == sorted(text(at) for at in range(60))


def test_a_cut_file_ends_the_preparation_by_name_unless_its_beginning_is_asked_for(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text(at)}) + "\n" for at in range(60)]
    whole = gzip.compress("".join(lines[30:]).encode())
    (tmp_path / "whole.jsonl").write_text("".join(lines[:30]))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    corpus = [tmp_path / "whole.jsonl", path]
    told = rf"damaged files, .*: 1: {path}, from line \d+ on: damaged gzip file: it is cut after {len(whole) // 2:,} bytes;"
    for method in ("exact", "none"):  # two passes, and one
        data = data_settings(tmp_path / method, corpus, "jsonl", dedup={"method": method})
        with pytest.raises(DataError, match=told):
            run(data)
        assert json.loads((tmp_path / method / "quarantine.jsonl").read_text())["lost"] == "rest_of_file"
    report = run(data_settings(tmp_path / "exact", corpus, "jsonl", damaged_files="keep_beginning"))
    assert 30 < sum(report.documents.values()) < 60
    assert any(line.startswith("  DAMAGED files, of which only the beginning was read: 1;") for line in report.lines())
    path.write_bytes(whole)  # fetched again: nothing else has to be done
    assert (
        sum(run(data_settings(tmp_path / "none", corpus, "jsonl", dedup={"method": "none"})).documents.values()) == 60
    )
