"""`--watch` over a Slurm that says what the test wants, with a clock that the test turns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch import watch as watching
from launch.cluster_settings import ClusterSettings
from launch.submit import Submitted, logs_of
from launch.watch import FollowedFile, watch
from pretrain.errors import ConfigError, Interrupted, PretrainError
from pretrain.files import append_json_line
from tests.launch.slurm_fakes import FakeSlurm
from tests.launch.slurm_jobs import job_on

CLUSTER = ClusterSettings(name="c", gpus_per_node=0, ranks_per_node=1, cpus_per_node=1)


def submitted(run: Path, cluster: ClusterSettings = CLUSTER, *numbers: int) -> Submitted:
    """Jobs of a run, 7 where none is named, at time 1000."""
    job = replace(job_on(cluster), run_dir=run)
    (run / "logs").mkdir(parents=True)
    chosen = numbers or (7,)
    return Submitted(job, chosen, tuple(log for number in chosen for log in logs_of(job, number)), 1000.0)


def ended(run: Path, code: int, time: float = 2000) -> None:
    append_json_line(run / "events.jsonl", {"kind": "launch_ended", "time": time, "exit_code": code})


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[float], None]]:
    """The queue is asked at every turn; `looks(a, b)` is a sleep that does a, then b, then nothing."""
    monkeypatch.setattr(watching, "QUEUE_INTERVAL_S", 0)
    monkeypatch.setattr(watching, "MISSED_INTERVAL_S", 0)

    def made(*acts: Callable[[], object]) -> Callable[[float], None]:
        waiting = list(acts)

        def sleep(_: float) -> None:
            if waiting:
                waiting.pop(0)()

        return sleep

    return made


def test_state_and_log_are_followed_to_the_runs_own_exit_code(
    slurm: FakeSlurm, tmp_path: Path, looks, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = tmp_path / "run"
    jobs = submitted(run)
    ended(run, 0, time=500)  # of an earlier launch
    slurm.queue("7|7|PENDING|1|Priority", "8|8|RUNNING|1|None")

    def starts() -> None:
        slurm.queue("7|7|RUNNING|2|None")
        jobs.logs[0].write_bytes(b"step 1\n")

    def is_requeued() -> None:
        slurm.queue()  # for one look
        ended(run, 75)

    def starts_again() -> None:
        slurm.queue("7|7|RUNNING|3|None")
        with jobs.logs[0].open("ab") as log:
            log.write(b"step \xff2\n")

    def ends() -> None:
        slurm.queue()
        ended(run, 3)

    assert watch(jobs, sleep=looks(starts, is_requeued, starts_again, ends)) == 3
    out, err = capfdbinary.readouterr()
    assert out == b"step 1\nstep \xff2\n"
    assert err.decode().splitlines() == [
        "job 7: pending (Priority)", "job 7: running on 2 node(s)", "job 7: running on 3 node(s)"
    ]  # fmt: skip


def test_a_chain_is_watched_to_its_last_job(
    slurm: FakeSlurm, tmp_path: Path, looks, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = tmp_path / "run"
    jobs = submitted(run, CLUSTER, 7, 8)
    slurm.queue("8|8|PENDING|1|Dependency", "7|7|RUNNING|1|None")

    def second() -> None:
        jobs.logs[0].write_bytes(b"first\n")
        jobs.logs[1].write_bytes(b"second\n")
        slurm.queue("8|8|RUNNING|1|None")
        ended(run, 75)

    def over() -> None:
        slurm.queue()
        ended(run, 0)

    assert watch(jobs, sleep=looks(second, over)) == 0
    out, err = capfdbinary.readouterr()
    assert out == b"first\nsecond\n"
    assert err.decode().splitlines() == ["job 7: running on 1 node(s), 1 more wait", "job 8: running on 1 node(s)"]


def test_an_array_has_a_log_for_each_of_its_jobs(tmp_path: Path) -> None:
    cluster = CLUSTER.model_copy(update={"requeue": "chain", "chain": "array", "chain_length": 2})
    assert [log.name for log in submitted(tmp_path / "run", cluster).logs] == ["slurm-7_1.out", "slurm-7_2.out"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("JobState=COMPLETED ExitCode=0:0", 0),
        ("JobState=FAILED ExitCode=3:0", 3),
        ("JobState=FAILED ExitCode=0:9", 137),
        ("JobState=OUT_OF_MEMORY ExitCode=0:125", 253),
        ("JobState=NODE_FAIL ExitCode=0:0", 70),
    ],
)
def test_without_a_launchers_word_slurm_is_asked_how_the_job_ended(
    words: str, code: int, slurm: FakeSlurm, tmp_path: Path, looks
) -> None:
    (slurm.folder / "scontrol").write_text(f"JobId=7 JobName=x {words} Comment=a=b\n")
    assert watch(submitted(tmp_path / "run"), sleep=looks()) == code


def test_the_batch_scripts_own_end_goes_before_an_older_word_of_a_launcher(
    slurm: FakeSlurm, tmp_path: Path, looks
) -> None:
    """Preempted, queued again, and stopped by preflight; then the same where only the launcher could tell."""
    run = tmp_path / "run"
    jobs = submitted(run)
    ended(run, 75)
    (slurm.folder / "scontrol").write_text("JobId=7 JobState=FAILED ExitCode=2:0\n")
    assert watch(jobs, sleep=looks()) == 2
    (slurm.folder / "scontrol").write_text("JobId=7 JobState=TIMEOUT ExitCode=0:15\n")
    assert watch(jobs, sleep=looks()) == 75


def test_a_job_that_was_cancelled_or_forgotten_is_no_success(slurm: FakeSlurm, tmp_path: Path, looks) -> None:
    jobs = submitted(tmp_path / "run")
    (slurm.folder / "scontrol").write_text("JobId=7 JobState=CANCELLED ExitCode=0:15\n")
    with pytest.raises(Interrupted, match="job 7 was cancelled"):
        watch(jobs, sleep=looks())
    slurm.fail("scontrol", "slurm_load_jobs error: Invalid job id specified")
    with pytest.raises(PretrainError, match="how job 7 ended is not known"):
        watch(jobs, sleep=looks())


def test_ctrl_c_leaves_the_job_running_and_says_so(slurm: FakeSlurm, tmp_path: Path, looks) -> None:
    slurm.queue("7|7|RUNNING|1|None")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as told:
        watch(submitted(tmp_path / "run"), sleep=looks(interrupt))
    assert "it goes on in the queue: 7" in str(told.value) and "scancel 7" in str(told.value)


def test_a_controller_that_does_not_answer_is_asked_again(
    slurm: FakeSlurm, tmp_path: Path, looks, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = tmp_path / "run"
    slurm.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    recovers = (slurm.folder / "squeue.fails").unlink
    ended(run, 0)
    assert watch(submitted(run), sleep=looks(lambda: None, recovers)) == 0
    assert capfdbinary.readouterr().err.count(b"Slurm did not answer") == 1


def test_without_squeue_nothing_can_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="squeue is not on the PATH"):
        watch(submitted(tmp_path / "run"), sleep=looks())


def test_a_file_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    file = FollowedFile(tmp_path / "log")
    assert file.news() == b""
    (tmp_path / "log").write_bytes(b"ab")
    assert (file.news(), file.news()) == (b"ab", b"")
