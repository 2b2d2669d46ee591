"""Slurm's answer, and its silence."""

from pathlib import Path

import pytest

from launch.job_states import JobState, ask_queue, parse_states


def squeue(folder: Path, script: str) -> str:
    program = folder / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_jobs_that_have_ended_and_lines_of_another_kind_are_left_out() -> None:
    told = "7|7|PENDING|2|Resources\nslurm_load_jobs: a warning\n8|8|RUNNING|4|None\n9|9|COMPLETED|1|None\n10|x\n"
    assert parse_states(told) == {7: JobState("PENDING", 2, "Resources"), 8: JobState("RUNNING", 4, "None")}


def test_a_job_of_an_array_is_found_under_both_numbers_and_one_that_runs_before_one_that_waits() -> None:
    waits, runs = JobState("PENDING", 2, "JobArrayTaskLimit"), JobState("RUNNING", 2, "None")
    told = "8|7|RUNNING|2|None\n7|7|PENDING|2|JobArrayTaskLimit\n"
    assert parse_states(told) == {7: runs, 8: runs}
    assert parse_states("\n".join(told.splitlines()[1:])) == {7: waits}


def test_slurm_is_asked_once_for_all_jobs(tmp_path: Path) -> None:
    command = squeue(tmp_path, f'echo "$@" >> {tmp_path}/asked; echo "8|8|RUNNING|4|None"')
    assert ask_queue([7, 8], command=command).jobs == {8: JobState("RUNNING", 4, "None")}
    assert (tmp_path / "asked").read_text() == "--noheader --format=%A|%F|%T|%D|%r --jobs=7,8\n"
    assert ask_queue([], command="/nowhere").answered


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 60", "did not answer within 0.2 s"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Slurm did not answer: Unable to contact"),
    ],
)
def test_slurm_that_does_not_answer_is_said(script: str, words: str, tmp_path: Path) -> None:
    queue = ask_queue([7], command=squeue(tmp_path, script), timeout_s=0.2)
    assert not queue.answered and queue.note is not None and words in queue.note


def test_a_job_that_slurm_has_forgotten_is_an_answer(tmp_path: Path) -> None:
    queue = ask_queue([7], command=squeue(tmp_path, "echo 'error: Invalid job id specified' >&2; exit 1"))
    assert (queue.answered, queue.jobs) == (True, {})


def test_a_machine_without_slurm_is_said() -> None:
    queue = ask_queue([7], command="no-such-squeue")
    assert queue.note == "there is no no-such-squeue on this machine: whether jobs still wait is not known"
