"""Preparation end to end: the same bytes whoever works, nothing done twice, nothing wrong in silence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from data_prep.folder import locked
from data_prep.pipeline import prepare_tokenizer
from data_prep.ranges import plan_sources
from data_prep.ray_tasks import RayTasks
from data_prep.shard import Judged, ShardTask, shard_and_keep
from data_prep.sieve import Sieve
from pretrain.data.batches import training_batches
from pretrain.data.token_shards import TokenShards, read_manifest, read_token_bytes
from pretrain.data.tokenizer import load_tokenizer
from pretrain.errors import DataError
from tests.data_prep.corpora import data_settings, output, quiet, run, text, write_texts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_texts(tmp_path_factory.mktemp("corpus") / "texts")
    (folder / "020.txt").write_text(text(0))  # a duplicate of the first
    (folder / "021.txt").write_bytes(b"caf\xe9\n")
    (folder / "022.txt").write_text("")
    return folder


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    run(data_settings(folder, corpus))
    return folder


def test_two_processes_write_the_same_bytes_as_one(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    report = run(data_settings(tmp_path / "data", corpus), workers=2)
    assert report.backend == "local, 2 processes"
    assert output(tmp_path / "data") == output(prepared)


def test_ray_writes_the_same_bytes_as_local(corpus: Path, prepared: Path, tmp_path: Path, ray_tasks: RayTasks) -> None:
    report = run(data_settings(tmp_path / "data", corpus), backend="ray", workers=2)
    assert report.backend.startswith("ray")
    assert output(tmp_path / "data") == output(prepared)


def test_the_text_comes_back_out_of_the_shards(corpus: Path, prepared: Path) -> None:
    tokenizer = load_tokenizer(prepared)
    found = []
    for split in ("train", "validation"):
        shards = TokenShards.open(prepared, split, "open")
        for number in range(shards.num_documents):
            ids = shards.document(number).tolist()
            assert ids[-1] == tokenizer.special.end_of_text and tokenizer.special.end_of_text not in ids[:-1]
            found.append(tokenizer.decode(ids))
    expected = {(corpus / f"{number:03d}.txt").read_text() for number in range(24) if number not in (21, 22)}
    assert len(found) == len(expected) and set(found) == expected


def test_the_report_and_the_manifest_count_what_is_there(prepared: Path, corpus: Path) -> None:
    manifest = read_manifest(prepared)
    assert manifest.corpus == {"bad_documents": 1, "documents": 22, "dropped": {"empty": 1}, "duplicates": 1}
    assert sum(manifest.splits[split].documents for split in manifest.splits) == 21
    kept = [number for number in range(24) if number not in (20, 21, 22)]
    size = sum(len((corpus / f"{number:03d}.txt").read_bytes()) for number in kept)
    assert sum(manifest.splits[split].text_bytes for split in manifest.splits) == size


def test_token_bytes_add_up_to_the_text(prepared: Path) -> None:
    manifest = read_manifest(prepared)
    lengths = read_token_bytes(prepared, manifest)
    for split in manifest.splits:
        shards = TokenShards.open(prepared, split)
        assert lengths[shards.read(0, shards.num_tokens)].sum() == manifest.splits[split].text_bytes
    assert lengths[[manifest.special.end_of_text, manifest.special.target, manifest.special.padding]].sum() == 0


def test_no_held_out_document_is_trained_on(prepared: Path) -> None:
    texts = {}
    for split in ("train", "validation"):
        shards = TokenShards.open(prepared, split)
        texts[split] = {shards.document(number).tobytes() for number in range(shards.num_documents)}
    assert texts["train"] and texts["validation"] and not texts["train"] & texts["validation"]


def test_the_same_documents_are_held_out_of_a_larger_corpus(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    larger = write_texts(tmp_path / "more", documents=40)
    run(data_settings(tmp_path / "data", larger))

    def held_out(folder: Path) -> set[str]:
        shards, tokenizer = TokenShards.open(folder, "validation"), load_tokenizer(folder)
        return {tokenizer.decode(shards.document(number).tolist()) for number in range(shards.num_documents)}

    assert held_out(prepared) <= held_out(tmp_path / "data")


def test_a_document_that_is_not_utf8_is_quarantined_with_its_file(prepared: Path, corpus: Path) -> None:
    rows = [json.loads(line) for line in (prepared / "quarantine.jsonl").read_text().splitlines()]
    told = {"line": None, "reason": "not UTF-8: byte 3 is 0xe9", "documents": 1, "lost": "document"}
    assert rows == [{"file": str(corpus / "021.txt"), **told}]


def test_prepared_data_can_be_trained_on(prepared: Path, corpus: Path) -> None:
    with training_batches(
        data_settings(prepared, corpus),
        seed=1,
        global_batch_sequences=4,
        micro_batch_sequences=2,
        data_rank=0,
        data_size=1,
        first_step=0,
    ) as batches:
        assert sum(batch.targets for batch in next(batches)) > 100


def test_a_finished_folder_is_reused_even_without_its_corpus(corpus: Path, tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=6)
    data = data_settings(tmp_path / "data", own)
    assert not run(data).reused
    before = output(tmp_path / "data")
    for path in own.iterdir():
        path.unlink()
    report = run(data)
    assert report.reused and "reused" in report.lines()[0] and output(tmp_path / "data") == before


def test_a_lost_shard_alone_is_made_again(corpus: Path, tmp_path: Path) -> None:
    data = data_settings(tmp_path / "data", corpus)
    run(data)
    before = output(tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "train").iterdir()}
    lost = sorted(times)[1]
    lost.unlink()
    report = run(data)
    assert not report.reused and report.tasks_skipped == len(times) - 1
    assert output(tmp_path / "data") == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != lost)


@pytest.mark.parametrize("name", ["tokenizer.json", "token_bytes.bin", "manifest.json"])
def test_a_lost_file_is_made_again(corpus: Path, prepared: Path, tmp_path: Path, name: str) -> None:
    data = data_settings(tmp_path / "data", corpus)
    run(data)
    (tmp_path / "data" / name).unlink()
    run(data)
    assert output(tmp_path / "data") == output(prepared)


def test_a_preparation_killed_between_shards_is_finished_to_the_same_bytes(
    corpus: Path, prepared: Path, tmp_path: Path
) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import data_prep.shard_writer
        from tests.data_prep.corpora import data_settings, run

        write, written = data_prep.shard_writer.write_shard, []

        def killed(*arguments, **options):
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(write(*arguments, **options))
            return written[-1]

        data_prep.shard_writer.write_shard = killed
        run(data_settings(Path(sys.argv[1]), Path(sys.argv[2])))
        """
    )
    folder = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", script, str(folder), str(corpus)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert not read_manifest(folder).complete and len(list(folder.glob("*/*.tokens"))) == 3
    (folder / "train" / ".000009.tokens.left").write_bytes(b"half")  # what a kill within a write leaves behind
    report = run(data_settings(folder, corpus))
    assert report.tasks_skipped >= 1
    assert output(folder) == output(prepared) and not list(folder.glob("*/.*"))


def test_changed_settings_are_refused_with_the_difference(corpus: Path, prepared: Path) -> None:
    before = output(prepared)
    with pytest.raises(DataError, match=r"data\.prepare\.validation_fraction: 0\.2 there, 0\.3 here.*delete this one"):
        run(data_settings(prepared, corpus, validation_fraction=0.3))
    with pytest.raises(DataError, match=r"data\.prepare\.tokenizer\.vocab_size: 400 there, 500 here"):
        run(data_settings(prepared, corpus, tokenizer={"vocab_size": 500}))
    assert output(prepared) == before


def test_settings_without_effect_on_the_output_may_change(corpus: Path, prepared: Path) -> None:
    assert run(data_settings(prepared, corpus, bad_document_limit=0.2, sequence_length=64)).reused


def test_an_unfinished_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=4)
    run(data_settings(tmp_path / "data", own))
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"data\.prepare\.shard_tokens"):
        run(data_settings(tmp_path / "data", own, shard_tokens=99))


def test_a_folder_of_something_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not made by `pretrain prepare` \(it holds 'notes.txt'\)"):
        run(data_settings(tmp_path, corpus))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_killed_as_it_claimed_its_folder_does_not_lock_it(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".prepare.json.k3v_x9").write_text('{"corpus"')
    assert not run(data_settings(tmp_path / "data", own)).reused


def test_a_mistake_in_the_corpus_can_be_mended_in_the_same_folder(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches no file"):
        run(data_settings(tmp_path / "data", tmp_path / "nowhere"))
    own = write_texts(tmp_path / "texts", documents=4)
    (own / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="are bad"):
        run(data_settings(tmp_path / "data", own))
    (own / "bad.txt").unlink()
    assert sum(run(data_settings(tmp_path / "data", own, task_bytes=9000)).documents.values()) == 4


def test_a_folder_whose_settings_file_is_lost_is_known_by_its_manifest(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=4)
    run(data_settings(tmp_path / "data", own))
    (tmp_path / "data" / "prepare.json").unlink()
    assert run(data_settings(tmp_path / "data", own)).reused
    with pytest.raises(DataError, match=r"data\.prepare\.task_bytes"):
        run(data_settings(tmp_path / "data", own, task_bytes=9000))


def test_names_that_are_not_utf8_can_be_read_and_listed(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=30)
    odd = os.fsdecode(b"odd\xff.txt")
    (own / odd).write_bytes(b"\xff")
    assert run(data_settings(tmp_path / "data", own)).corpus["bad_documents"] == 1
    assert "odd\ufffd.txt" in (tmp_path / "data" / "quarantine.jsonl").read_text()


def test_the_tokenizer_alone_is_that_of_the_preparation(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    data = data_settings(tmp_path / "data", corpus)
    lines = prepare_tokenizer(data, tmp_path / "mine.json", "local", 1, quiet())
    assert (tmp_path / "mine.json").read_bytes() == (prepared / "tokenizer.json").read_bytes()
    assert not (tmp_path / "data").exists() and "400 tokens" in lines[0]


def test_two_preparations_of_one_folder_do_not_mix(corpus: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(DataError, match="another `pretrain prepare` is at work"):
        run(data_settings(tmp_path, corpus))


def test_a_folder_that_must_exist_and_does_not_is_told(tmp_path: Path) -> None:
    data = data_settings(tmp_path / "data", tmp_path).model_copy(update={"prepare": None})
    with pytest.raises(DataError, match=r"not prepared, and the config has no data\.prepare section"):
        run(data)


def test_a_prepared_folder_needs_no_prepare_section(corpus: Path, prepared: Path) -> None:
    assert run(data_settings(prepared, corpus).model_copy(update={"prepare": None})).reused


def test_a_missing_corpus_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepare\.corpus\.paths: '.*nowhere' matches no file"):
        run(data_settings(tmp_path / "data", tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [None, "", "  \n\n"])
def test_an_empty_corpus_is_told(tmp_path: Path, content: str | None) -> None:
    own = tmp_path / "texts"
    own.mkdir()
    if content is not None:
        (own / "a.txt").write_text(content)
    with pytest.raises(DataError, match=r"prepare\.corpus"):
        run(data_settings(tmp_path / "data", own))
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_too_many_bad_documents_stop_it_and_are_listed(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=8)
    for number in (1, 3):
        (own / f"{number:03d}.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(
        DataError, match=r"2 of 8 documents are bad, over prepare\.bad_document_limit=0\.05: .*001\.txt: not UTF-8"
    ):
        run(data_settings(tmp_path / "data", own))
    assert len((tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()) == 2
    assert run(data_settings(tmp_path / "data", own, bad_document_limit=0.5)).corpus["bad_documents"] == 2


def test_a_file_that_changes_under_way_is_refused(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    data = data_settings(prepared, corpus)
    assert data.prepare is not None
    files = plan_sources(data.prepare, tmp_path)[0]
    judged = Judged("00" * 16, np.ones(50, np.uint8))
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(prepared / "tokenizer.json", folder)
    task = ShardTask(
        files,
        data.prepare.sources["main"],
        data.prepare,
        Sieve(data.prepare).identity,
        judged,
        folder,
        "11" * 16,
        "22" * 16,
        folder / "records",
    )
    with pytest.raises(DataError, match=r"000\.txt .* changed while it was being prepared"):
        shard_and_keep(task)
    assert not list(folder.rglob("*.tokens")) and not (folder / "records").exists()


def test_shards_hold_no_more_tokens_than_they_may(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=12)
    run(data_settings(tmp_path / "data", own, shard_tokens=1500, task_bytes=100_000))
    shards = read_manifest(tmp_path / "data").splits["train"].shards
    assert len(shards) > 3 and all(shard.tokens <= 1500 for shard in shards)


def test_a_corpus_of_one_document_trains_on_it(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=1)
    report = run(data_settings(tmp_path / "data", own))
    assert report.documents == {"train": 1, "validation": 0}


def test_a_small_corpus_still_holds_one_document_out(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=3)
    report = run(data_settings(tmp_path / "data", own, validation_fraction=1e-9))
    assert report.documents == {"train": 2, "validation": 1}


def test_the_tokenizer_never_sees_what_is_held_out(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", documents=12)
    run(data_settings(tmp_path / "data", own))
    first = (tmp_path / "data" / "tokenizer.json").read_bytes()
    tokenizer, shards = load_tokenizer(tmp_path / "data"), TokenShards.open(tmp_path / "data", "validation")
    held_out = {tokenizer.decode(shards.document(number).tolist()) for number in range(shards.num_documents)}
    for path in own.iterdir():
        if path.read_text() in held_out:
            path.unlink()
    (own / "zzz.txt").write_text(next(iter(held_out)))  # one stays, so that the split stays
    run(data_settings(tmp_path / "again", own))
    assert held_out and (tmp_path / "again" / "tokenizer.json").read_bytes() == first


def test_no_document_is_lost_where_a_range_fills_several_shards(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "texts", 30)
    data = data_settings(tmp_path / "data", own, shard_tokens=900, task_bytes=100_000, validation_fraction=0.1)
    run(data)
    shards = [TokenShards.open(data.folder, split) for split in ("train", "validation")]
    assert shards[0].num_shards > 3
    assert sum(part.num_documents for part in shards) == 30
    tokenizer = load_tokenizer(data.folder)
    found = {tokenizer.decode(part.document(at).tolist()) for part in shards for at in range(part.num_documents)}
    assert found == {path.read_text() for path in own.iterdir()}
