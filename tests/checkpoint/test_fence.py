"""A stale process never commits a checkpoint that counts, whenever it was paused, and deletes nothing that is needed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.registry import claim
from pretrain.checkpoint.format import (
    CheckpointRef,
    committed_checkpoints,
    fenced_checkpoints,
    latest_checkpoint,
)
from pretrain.checkpoint.prune import prune
from pretrain.checkpoint.save import save
from pretrain.errors import RankFault
from pretrain.files import append_json_line
from tests.checkpoint.fake_engine import launch, run_state, trained_engine

OPERATIONS = [(Path, "mkdir"), (Path, "open"), (Path, "rename"), (Path, "replace"), (Path, "read_text"), (os, "fsync")]


def begin(run_dir: Path) -> int:
    """A launch, registered as launch/registry.py does it."""
    generation = claim(run_dir)
    committed = committed_checkpoints(run_dir)
    steps = {str(ref.generation): ref.step for ref in sorted(committed)}
    append_json_line(run_dir / "attempts.jsonl", {"generation": generation, "committed": steps, "hosts": ["n7"]})
    return generation


def save_step(run_dir: Path, step: int, generation: int) -> CheckpointRef:
    engine = trained_engine(0)
    engine.step = step
    return save(engine, run_dir, generation, run_state()).ref


def counting(run_dir: Path) -> list[tuple[int, int]]:
    return [(ref.step, ref.generation) for ref in committed_checkpoints(run_dir)]


def paused_before(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, nth: int, meanwhile: Callable[[], object]
) -> None:
    """Something else happens before the n-th call of a function, the calls that this makes not counted."""
    original, left = getattr(owner, name), nth

    def call(*arguments: object, **named: object) -> object:
        nonlocal left
        left -= 1
        if left == -1:
            meanwhile()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def stale_save(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Launch 1 saves step 200 and is paused between its last check and its marker, while launch 2 begins; what it was told."""
    begin(run_dir)
    save_step(run_dir, 100, 1)
    with monkeypatch.context() as patch:
        paused_before(patch, Path, "replace", 0, lambda: begin(run_dir))
        with pytest.raises(RankFault) as told:
            save_step(run_dir, 200, 1)
    return str(told.value)


def test_a_writer_paused_between_check_and_marker_commits_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stale_save(tmp_path, monkeypatch)
    assert "launch 2 of this run has begun on n7; this one (1) stops" in told
    late = CheckpointRef.at(tmp_path, 200, 1)
    assert late.marker.is_file(), "the marker was written all the same"
    assert latest_checkpoint(tmp_path) == CheckpointRef.at(tmp_path, 100, 1)
    assert fenced_checkpoints(tmp_path) == [late]


def test_without_the_fence_that_writer_would_have_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what a launch saw is what keeps the late marker out."""
    stale_save(tmp_path, monkeypatch)
    rows = (tmp_path / "attempts.jsonl").read_text().replace('"committed"', '"forgotten"')
    (tmp_path / "attempts.jsonl").write_text(rows)
    assert latest_checkpoint(tmp_path) == CheckpointRef.at(tmp_path, 200, 1)


@pytest.mark.parametrize(("owner", "name"), OPERATIONS, ids=[name for _, name in OPERATIONS])
def test_whenever_the_next_launch_begins_it_goes_on_from_what_it_saw_and_a_save_that_returned_is_in_it(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, nth = set(), 0
    while True:
        run_dir, seen = tmp_path / str(nth), []
        begin(run_dir)
        save_step(run_dir, 100, 1)

        def meanwhile(run_dir: Path = run_dir, seen: list[tuple[int, int]] = seen) -> None:
            begin(run_dir)
            seen += counting(run_dir)

        with monkeypatch.context() as patch:
            paused_before(patch, owner, name, nth, meanwhile)
            try:
                prune(run_dir, save_step(run_dir, 200, 1), keep=1)
                returned = True
            except RankFault:
                returned = False
        if not seen:
            break
        assert counting(run_dir)[0] == seen[0], "it is neither outdone nor deleted"
        assert not returned or seen[0] == (200, 1)
        outcomes.add((returned, seen[0][0]))
        nth += 1
    assert {(False, 100), (False, 200)} & outcomes, "some stopped the save"


def test_a_launch_that_fell_back_does_not_let_the_one_before_commit_lower_steps(tmp_path: Path) -> None:
    begin(tmp_path)
    for step in (100, 200, 300):
        save_step(tmp_path, step, 1)
    begin(tmp_path)
    save_step(tmp_path, 150, 2)  # 200 and 300 are damaged
    ref = CheckpointRef.at(tmp_path, 250, 2)
    begin(tmp_path)
    commit_late(ref)
    assert counting(tmp_path) == [(300, 1), (200, 1), (150, 2), (100, 1)]


def test_each_later_launch_bounds_all_before_it(tmp_path: Path) -> None:
    begin(tmp_path)
    save_step(tmp_path, 100, 1)
    # Launch 3 looks before launch 2 does, and launch 1 commits between.
    append_json_line(tmp_path / "attempts.jsonl", {"generation": 3, "committed": {"1": 100}})
    commit_late(CheckpointRef.at(tmp_path, 200, 1))
    append_json_line(tmp_path / "attempts.jsonl", {"generation": 2, "committed": {"1": 200}})
    commit_late(CheckpointRef.at(tmp_path, 300, 2))
    assert counting(tmp_path) == [(100, 1)]


def test_rows_of_older_versions_fence_nothing_out(tmp_path: Path) -> None:
    for generation in (1, 2):
        launch(tmp_path, generation)
        save_step(tmp_path, 100 * generation, generation)
    assert counting(tmp_path) == [(200, 2), (100, 1)]
    begin(tmp_path)
    commit_late(CheckpointRef.at(tmp_path, 300, 2))
    assert counting(tmp_path) == [(200, 2), (100, 1)]


def test_what_was_fenced_out_is_swept_and_what_counts_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale_save(tmp_path, monkeypatch)
    ref = save_step(tmp_path, 150, 2)
    assert prune(tmp_path, ref, keep=2) == [CheckpointRef.at(tmp_path, 200, 1)]
    assert counting(tmp_path) == [(150, 2), (100, 1)]


def test_a_stale_launcher_deletes_nothing(tmp_path: Path) -> None:
    begin(tmp_path)
    save_step(tmp_path, 100, 1)
    mine = save_step(tmp_path, 200, 1)
    claim(tmp_path)  # a launch that has not even its row yet
    assert prune(tmp_path, mine, keep=1) == []
    with pytest.raises(RankFault, match=r"launch 2 of this run has begun; this one \(1\) stops"):
        save_step(tmp_path, 300, 1)
    assert counting(tmp_path) == [(200, 1), (100, 1)]


def test_a_stale_launcher_that_deletes_all_the_same_leaves_the_later_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path)
    mine = save_step(tmp_path, 200, 1)
    begin(tmp_path)
    theirs = save_step(tmp_path, 150, 2)  # 200 is damaged
    monkeypatch.setattr("pretrain.checkpoint.prune.newest_launch", lambda _: 1)  # it asked before launch 2 began
    assert prune(tmp_path, mine, keep=1) == []
    assert theirs in committed_checkpoints(tmp_path)


def commit_late(ref: CheckpointRef) -> None:
    """A marker that nobody checked."""
    ref.path.mkdir(parents=True)
    ref.marker.write_text("its content does not matter here")
