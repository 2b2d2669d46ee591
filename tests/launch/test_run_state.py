"""From a run's folder to its row, at a fixed clock."""

from pathlib import Path
from typing import Any

import pytest

from launch.job_states import JobState, Queue
from launch.run_facts import read_facts
from launch.run_state import RunRow, jobs_of, row_of, words
from tests.launch.run_folders import NOW, write_run

START = {"kind": "start"}
NO_JOBS = Queue()


def row(folder: Path, queue: Queue = NO_JOBS, **run: Any) -> RunRow:
    return row_of(read_facts(write_run(folder / "run", **run)), "run", queue, NOW)


def ended(code: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "launch_ended", "exit_code": code, "message": f"the end {code}", **fields}


@pytest.mark.parametrize(
    ("run", "state"),
    [
        ({"total": 10, "launches": 0}, "not started"),
        ({}, "stale"),
        ({"events": [START]}, "starting"),
        ({"events": [START], "steps": range(1, 9)}, "training"),
        ({"events": [START], "steps": range(1, 9), "last_row_age_s": 290}, "training"),
        ({"events": [{**START, "time": NOW - 900}], "steps": range(1, 9), "last_row_age_s": 900}, "stale"),
        ({"events": [{**START, "time": NOW - 900}], "steps": range(1, 9), "step_s": 60, "last_row_age_s": 900}, "training"),
        ({"events": [START, ended(0)], "steps": range(1, 9)}, "done"),
        ({"events": [{"kind": "finish", "exit_code": 0}]}, "done"),
        ({"saved": 1000, "steps": range(990, 1001)}, "done"),
        ({"events": [START, ended(75)]}, "stopped"),
        ({"events": [START, ended(130)]}, "stopped"),
        ({"events": [START, {"kind": "finish", "exit_code": 75}, ended(70)]}, "failed"),
        ({"events": [START, ended(2)]}, "failed"),
        ({"events": [START, {"kind": "job", "exit_code": 70, "message": "no node is fit"}]}, "failed"),
        ({"events": [ended(70, attempt=1)], "launches": 2}, "starting"),
        ({"events": [{"kind": "finish", "exit_code": 70}, {"kind": "restart", "message": "rank 1"}]}, "starting"),
    ],
)  # fmt: skip
def test_the_state_without_slurm_is_judged_from_the_files(run: dict[str, Any], state: str, tmp_path: Path) -> None:
    assert row(tmp_path, **run).state == state


@pytest.mark.parametrize(
    ("jobs", "shown"),
    [
        ({7: JobState("PENDING", 2, "Priority")}, ("pending", "Priority", 7)),
        ({7: JobState("PENDING", 2, "None")}, ("pending", "", 7)),
        ({7: JobState("RUNNING", 1, "None")}, ("running", "on 1 node", 7)),
        ({7: JobState("RUNNING", 4, "None"), 8: JobState("PENDING", 4, "Dependency")}, ("running", "on 4 nodes", 7)),
        ({8: JobState("COMPLETING", 4, "None")}, ("completing", "", 8)),
    ],
)
def test_the_queue_has_the_word_on_a_job(
    jobs: dict[int, JobState], shown: tuple[str, str, int], tmp_path: Path
) -> None:
    told = row(tmp_path, Queue(jobs), jobs=[7, 8], steps=range(1, 9), events=[START, ended(75)])
    assert (told.state, told.detail, told.job) == shown


def test_a_job_that_runs_and_is_silent_says_so(tmp_path: Path) -> None:
    queue = Queue({7: JobState("RUNNING", 2, "None")})
    told = row(tmp_path, queue, slurm_job=7, steps=range(1, 9), last_row_age_s=3900)
    assert (told.state, told.detail) == ("running", "on 2 nodes, silent 1h05m")


def test_the_rest_of_a_chain_does_not_hide_that_a_run_is_done(tmp_path: Path) -> None:
    queue = Queue({8: JobState("PENDING", 2, "Dependency")})
    assert row(tmp_path, queue, jobs=[7, 8], events=[START, ended(0)]).state == "done"


@pytest.mark.parametrize(("answered", "state"), [(True, "failed"), (False, "starting")])
def test_a_launch_whose_job_left_the_queue_without_a_word_has_failed(
    answered: bool, state: str, tmp_path: Path
) -> None:
    told = row(tmp_path, Queue(answered=answered), slurm_job=7, events=[START])
    assert told.state == state
    assert told.event == ("job 7 left the queue without a word" if answered else "launched")


def test_a_job_that_ended_before_a_launch_is_told(tmp_path: Path) -> None:
    told = row(tmp_path, launches=0, jobs=[7])
    assert (told.state, told.event, told.event_age_s) == ("failed", "job 7 left the queue before it began", 5000.0)


def test_slurm_is_asked_about_jobs_by_name_and_by_launch_and_not_of_a_run_that_is_done(tmp_path: Path) -> None:
    assert jobs_of(read_facts(write_run(tmp_path / "a", jobs=[7, 8], slurm_job=5))) == [5, 7, 8]
    assert jobs_of(read_facts(write_run(tmp_path / "b", jobs=[7, 8], events=[ended(0)]))) == []


def test_the_figures_are_of_the_last_rows(tmp_path: Path) -> None:
    told = row(tmp_path, launches=3, events=[START], steps=range(101, 201), step_s=2.0, last_row_age_s=10, saved=150)
    assert (told.step, told.total_steps, told.restarts, told.checkpoint_step) == (200, 1000, 2, 150)
    assert (told.loss, told.tokens_per_second) == (4.8, 12_300.0)
    assert told.eta_s == pytest.approx(800 * 2.0 - 10)


def test_a_run_that_is_not_under_way_has_no_eta(tmp_path: Path) -> None:
    assert row(tmp_path, events=[START, ended(75)], steps=range(1, 9)).eta_s is None


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({}, ""),
        ({"kind": "start"}, "launched"),
        ({"kind": "checkpoint", "step": 12000}, "checkpoint 12,000"),
        ({"kind": "restart", "step": 12000}, "went on at step 12,000"),
        ({"kind": "restart", "step": 5, "message": "rank 3 was killed\nits log"}, "restart 5: rank 3 was killed"),
        ({"kind": "skipped_step", "step": 7}, "step 7 skipped"),
        ({"kind": "checkpoint_failed", "step": 7, "cause": "disk full"}, "checkpoint failed 7: disk full"),
        ({"kind": "finish", "exit_code": 70, "summary": {"end": "rank 0: boom"}}, "rank 0: boom"),
        ({"kind": "finish", "exit_code": 0, "summary": {}}, "finished"),
        ({"kind": "launch_ended", "exit_code": 2}, "ended with exit code 2"),
        ({"kind": "of_a_later_version"}, "of a later version"),
    ],
)
def test_events_are_told_in_few_words(event: dict[str, Any], told: str) -> None:
    assert words(event) == told


def test_rows_of_foreign_values_give_a_row_all_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=range(1, 3))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": "nan"}\n{"step": 3, "attempt": "x", "time": null, "train/loss": "nan"}\n{"step": []}\n')
    for name, text in (("events", '{"kind": [1], "time": "soon", "step": "inf"}'), ("attempts", '{"slurm": 3}')):
        (run / f"{name}.jsonl").write_text(text + "\n")
    assert row_of(read_facts(run), "run", Queue(), NOW).step == 3
