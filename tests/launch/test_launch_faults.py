"""A rank's end becomes one exit code and one message; the launcher runs in the test's own process."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.cli import exit_code_of
from launch.torchrun import Launch, run
from pretrain.checkpoint.fence import ATTEMPTS
from pretrain.checkpoint.format import CheckpointRef
from pretrain.config import load_config, read_resolved
from pretrain.files import read_json_lines
from pretrain.resolve import World
from tests.data.folders import text_documents, write_folder

RANK_COMMAND = (sys.executable, str(Path(__file__).with_name("ranks.py")))


@pytest.fixture
def launch(config_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs ranks of a mode; returns exit code, stdout and stderr."""

    def launched(mode: str, nproc: int = 2, *overrides: str) -> tuple[int, str, str]:
        monkeypatch.setenv("FAKE_RANK", mode)
        settings = Launch(World(nproc), rank_command=RANK_COMMAND, again="pretrain train AGAIN")

        def work() -> None:
            run(load_config(config_file, overrides), settings)

        code = exit_code_of(work)
        out, err = capfd.readouterr()
        return code, out, err

    return launched


def test_a_run_that_ends_well_exits_0_and_rank_0_alone_speaks(launch, tmp_path: Path) -> None:
    code, out, err = launch("ok", 4)
    assert (code, err) == (0, "")
    assert out == "rank 0 speaks, a terminal: False\n"
    for rank in (1, 2, 3):
        assert (tmp_path / f"run/logs/gen-1/rank-{rank}.log").read_text().startswith(f"rank {rank} speaks")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("CheckFailed", 1),
        ("ConfigError", 2),
        ("DataError", 3),
        ("CheckpointError", 4),
        ("StorageError", 5),
        ("RankFault", 70),
        ("Preempted", 75),
        ("Interrupted", 130),
    ],
)
def test_an_error_of_the_ranks_keeps_its_code_and_its_message(kind: str, code: int, launch) -> None:
    ended, _, err = launch(f"raise:{kind}")
    assert ended == code
    assert err.count("data.dir=x must be y; use z") == 1
    assert "Traceback" not in err


def test_an_error_of_one_rank_is_told_though_its_peers_hang(launch) -> None:
    began = time.monotonic()
    code, _, err = launch("one:DataError")
    assert code == 3
    assert err == "error: the message of rank 1: data.dir=x must be y; use z\n"
    assert time.monotonic() - began < 15


def test_a_killed_rank_is_named_with_its_signal_and_the_next_command(launch, tmp_path: Path) -> None:
    code, _, err = launch("kill")
    assert code == 70
    assert "error: rank 1 was killed by SIGKILL (the kernel's out-of-memory killer does this" in err
    assert f"its log: {tmp_path}/run/logs/gen-1/rank-1.log" in err
    assert err.strip().endswith("continue: pretrain train AGAIN")
    assert "rank 0" not in err


def test_what_a_peer_says_of_a_killed_rank_is_not_the_cause(launch) -> None:
    code, _, err = launch("kill-and-notice")
    assert code == 70
    assert "error: rank 1 was killed by SIGKILL" in err


def test_a_rank_that_tells_the_cause_after_its_peer_failed_is_waited_for(launch) -> None:
    code, _, err = launch("late:DataError")
    assert code == 3 and err.endswith("\nerror: the message of rank 1: data.dir=x must be y; use z\n")


def test_a_fault_of_the_program_is_one_line_and_its_traceback_is_in_the_log(launch, tmp_path: Path) -> None:
    code, _, err = launch("crash")
    assert code == 70
    assert "error: rank 1: ValueError: an assumption does not hold" in err
    assert "Traceback" in (tmp_path / "run/logs/gen-1/rank-1.log").read_text()
    assert "Traceback" not in err


def test_a_rank_that_leaves_no_word_is_told_with_its_exit_code(launch) -> None:
    code, _, err = launch("exit:9")
    assert code == 70
    assert "rank 1 ended with exit code 9 and left no word" in err


def test_a_rank_that_could_not_write_its_word_keeps_the_code_of_a_full_disk(launch) -> None:
    code, _, err = launch("exit:5")
    assert code == 5
    assert "rank 1 ended with exit code 5 (disk full, or a folder that cannot be written)" in err


def test_a_peer_that_hears_no_signal_is_killed_after_its_grace(
    launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PEER", "deaf")
    monkeypatch.setattr("launch.ranks.PEERS_GRACE_S", 0.5)
    began = time.monotonic()
    code, _, err = launch("one:DataError")
    assert (code, err.count("\n")) == (3, 1)
    assert time.monotonic() - began < 10
    pid = int((tmp_path / "run/rank-0.started").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_every_launch_is_registered_before_its_ranks_start(launch, tmp_path: Path) -> None:
    launch("ok")
    launch("kill")
    launch("ok", 2, "logging.interval_steps=5")
    rows = read_json_lines(tmp_path / "run" / ATTEMPTS)
    assert [row["generation"] for row in rows] == [1, 2, 3]
    assert rows[0]["layout"] == {"pp": 1, "dp": 2, "tp": 1, "zero_stage": 1}
    assert rows[0]["hosts"] and rows[0]["versions"]["torch"] and rows[0]["when"].endswith("Z")
    assert rows[2]["changes"] == ["logging.interval_steps: 1 -> 5"]
    assert read_resolved(tmp_path / "run").logging.interval_steps == 5


def test_a_changed_config_is_refused_before_anything_is_written(launch, tmp_path: Path) -> None:
    launch("ok")
    checkpoint = CheckpointRef.at(tmp_path / "run", 5, 1)
    checkpoint.path.mkdir(parents=True)
    checkpoint.marker.write_text("that it is damaged is for the ranks to tell")
    before = (tmp_path / "run/config.yaml").read_text()
    code, _, err = launch("ok", 2, "run.seed=7")
    assert code == 2 and "run.seed: 1234 before, 7 now" in err and "--allow-change run.seed" in err
    assert (tmp_path / "run/config.yaml").read_text() == before
    assert len(read_json_lines(tmp_path / "run" / ATTEMPTS)) == 1


def test_a_launch_without_a_checkpoint_binds_no_later_one_to_its_vocabulary(launch, tmp_path: Path) -> None:
    write_folder(tmp_path / "right", text_documents(50, 1), text_documents(50, 2))
    (tmp_path / "right/token_bytes.bin").write_bytes(b"\1\0" * 100)
    launch("kill")
    assert launch("ok", 2, f"data.dir={tmp_path}/right")[0] == 0
    model = read_resolved(tmp_path / "run").model
    assert model.vocab_size == 100
    changes = read_json_lines(tmp_path / "run" / ATTEMPTS)[1]["changes"]
    assert "model.vocab_size: 300 -> 100" in changes


def test_ranks_get_what_they_need_and_keep_what_the_user_set(
    launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = "import json, os, sys; print(json.dumps(dict(os.environ, argv=sys.argv)))"
    monkeypatch.setattr(sys.modules[__name__], "RANK_COMMAND", (sys.executable, "-c", show))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "mine")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, out, _ = launch("ok", 2)
    seen = json.loads(out)
    assert seen["argv"] == ["-c", "--run", str(tmp_path / "run"), "--generation", "1"]
    assert (seen["RANK"], seen["WORLD_SIZE"], seen["MASTER_ADDR"]) == ("0", "2", "127.0.0.1")
    assert int(seen["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert seen["TOKENIZERS_PARALLELISM"] == "mine"
    assert (seen["DS_ACCELERATOR"], seen["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert int(seen["MALLOC_TRIM_THRESHOLD_"]) > 1 << 32


def test_a_launcher_that_another_has_overtaken_does_not_start_again(
    config_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overtaken = (
        "import os, time; os.environ['RANK'] == '1' or time.sleep(60); "
        f"os.mkdir({str(tmp_path / 'run/logs/gen-2')!r}); os.kill(os.getpid(), 9)"
    )
    settings = Launch(World(2), rank_command=(sys.executable, "-c", overtaken), max_restarts=3)

    def work() -> None:
        run(load_config(config_file), settings)

    assert exit_code_of(work) == 70
    told = "launch 2 of this run has begun; this one (1) stops without saving"
    assert capfd.readouterr().err == f"error: {told}\n"
    assert len(read_json_lines(tmp_path / "run" / ATTEMPTS)) == 1
    (event,) = read_json_lines(tmp_path / "run/events.jsonl")
    assert (event["kind"], event["exit_code"], event["message"]) == ("launch_ended", 70, told)


def test_signals_are_as_before_when_the_launch_is_over(launch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    launch("ok")
    assert before == {number: signal.getsignal(number) for number in before}
