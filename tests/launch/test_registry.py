"""Each launch of a run has a number of its own and a row that says what it goes on from."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from launch.registry import Attempt, claim, register
from launch.torchrun import check
from pretrain.checkpoint.fence import ATTEMPTS, newest_launch
from pretrain.checkpoint.format import CheckpointRef
from pretrain.config import load_config
from pretrain.errors import RankFault, StorageError
from pretrain.files import append_json_line, read_json_lines
from tests.checkpoint.test_checkpoint_format import commit


@pytest.fixture
def attempt(config_file: Path) -> Attempt:
    checked = check(load_config(config_file))
    return Attempt(checked.config, checked.manifest, ("run.seed: 1 -> 2",), ("run.seed",), 2, ("n1", "n2"))


def rows(attempt: Attempt) -> list[dict[str, object]]:
    return read_json_lines(attempt.config.run_dir / ATTEMPTS)


def test_of_launchers_that_begin_together_no_two_get_the_same_number(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: claim(tmp_path), range(40)))
    assert sorted(numbers) == list(range(1, 41))


def test_a_row_tells_hosts_slurm_and_what_the_launch_goes_on_from(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert register(attempt) == 1
    for step, generation in ((100, 1), (200, 1)):
        commit(attempt.config.run_dir, step, generation)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert register(attempt) == 2
    commit(attempt.config.run_dir, 150, 2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert register(attempt) == 3
    first, second, third = rows(attempt)
    assert (first["checkpoint"], first["committed"], first["slurm"]) == (None, {}, None)
    assert (second["checkpoint"], second["committed"]) == ({"step": 200, "generation": 1}, {"1": 200})
    assert (third["checkpoint"], third["committed"]) == ({"step": 200, "generation": 1}, {"1": 200, "2": 150})
    assert (second["slurm"], third["slurm"]) == ({"job": 12, "restart": 0}, {"job": 12, "restart": 3})
    assert (third["hosts"], third["nodes"], third["changes"]) == (["n1", "n2"], 2, ["run.seed: 1 -> 2"])


def test_a_restart_in_place_stops_where_another_launch_has_begun(attempt: Attempt) -> None:
    assert register(attempt) == 1
    assert register(attempt, before=1) == 2
    register(replace(attempt, hosts=("n9",)))
    with pytest.raises(RankFault, match=r"launch 3 of this run has begun on n9; this one \(2\) stops"):
        register(attempt, before=2)
    claim(attempt.config.run_dir)  # it has no row yet, and may never get one
    with pytest.raises(RankFault, match=r"launch 4 of this run has begun; this one \(3\) stops"):
        register(attempt, before=3)
    assert len(rows(attempt)) == 3


def test_of_two_that_register_together_the_earlier_stops(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    def append_after_another(path: Path, row: dict[str, object]) -> None:
        claim(attempt.config.run_dir)
        append_json_line(path, row)

    monkeypatch.setattr("launch.registry.append_json_line", append_after_another)
    with pytest.raises(RankFault, match=r"launch 2 of this run has begun; this one \(1\) stops"):
        register(attempt)


def test_checkpoints_are_looked_at_after_the_number_is_claimed(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a writer that sees no claim behind its marker might be unseen too."""
    claimed = []

    def look(run_dir: Path) -> list[CheckpointRef]:
        claimed.append(newest_launch(run_dir))
        return []

    monkeypatch.setattr("launch.registry.committed_checkpoints", look)
    assert register(attempt) == 1
    assert claimed == [1]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match="no space is left"):
        claim(tmp_path)
