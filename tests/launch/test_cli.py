"""The command line: exit codes, messages, and the commands that need no rank."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import torchrun
from launch.cli import build_parser, exit_code_of, main
from pretrain import errors
from pretrain.checkpoint.format import CheckpointRef
from pretrain.config import load_config, write_resolved
from pretrain.errors import PretrainError
from pretrain.files import append_json_line

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PretrainError)]


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_one_message_and_its_exit_code(
    kind: type[PretrainError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raising(kind("field=1 must be 2"))) == kind.exit_code
    err = capsys.readouterr().err
    assert err.endswith("field=1 must be 2\n") and len(err.splitlines()) == 1


def test_the_exit_codes_are_those_of_the_documentation() -> None:
    documented = {int(code) for code in re.findall(r"\b(\d+) (?:done|a |config|data|checkpoint|disk|preempted|stopped)",
                                                   (sys.modules["launch.cli"].__doc__ or "").replace("\n", " "))}  # fmt: skip
    assert documented == {0} | {kind.exit_code for kind in KINDS}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "not a directory; choose another path"),
    ],
)
def test_an_error_of_the_disk_exits_5_with_the_path(
    number: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raising(OSError(number, os.strerror(number), "/the/path"))) == 5
    err = capsys.readouterr().err
    assert err.startswith("error: /the/path: ") and words in err


def test_ctrl_c_exits_130_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code_of(raising(ZeroDivisionError()))
    with pytest.raises(OSError, match="Input/output"):
        exit_code_of(raising(OSError(errno.EIO, "Input/output error")))


def test_a_reader_that_left_is_no_error() -> None:
    code = "import sys; from launch.cli import exit_code_of\nsys.exit(exit_code_of(lambda: print('x' * 1_000_000)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train"], "the following arguments are required: CONFIG"),
        (["train", "x.yaml", "--nprocs", "3"], "unrecognized arguments: --nprocs 3; did you mean --nproc?"),
        (["train", "x.yaml", "--npro", "3"], "did you mean --nproc?"),
        (["train", "x.yaml", "--nproc", "0"], "--nproc: must be a whole number above 0, not '0'"),
        (["train", "quickstart.yaml", "--nnodes", "2"], "--nnodes 2 needs --rendezvous HOST:PORT"),
        (["train", "quickstart.yaml", "--node-rank", "1"], "--node-rank 1 must be from 0 to 0, for --nnodes 1"),
        (["train", "quickstart.yaml", "--rendezvous", "a:1"], "--rendezvous has no meaning with one node"),
        (["prepare", "x.yaml", "--backend", "rya"], "did you mean ray?"),
        (["checkpoint", "lst", "x"], "did you mean list?"),
        (["report", "nowhere"], "nowhere: not the folder of a run (it has no config.yaml)"),
        (["evaluate", "nowhere"], "nowhere: not the folder of a run"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere: not the folder of a run"),
        (["train", "nowhere.yaml"], "nowhere.yaml: there is no such config file; shipped ones are"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_exits_2_with_a_hint(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err


def test_a_missing_data_folder_exits_3_and_names_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quickstart.yaml"]) == 3
    assert "pretrain prepare" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_cut_shard_exits_3_and_is_named_before_anything_is_written(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/train/000000.tokens").write_bytes(bytes(19_999))
    assert main(["train", str(config_file)]) == 3
    assert "data/train/000000.tokens" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model_exits_4_before_anything_is_written(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = SimpleNamespace(step=5, state=SimpleNamespace(model={"d_model": 32}))
    monkeypatch.setattr(torchrun, "latest_checkpoint", lambda run_dir: CheckpointRef.at(run_dir, 5, 1))
    monkeypatch.setattr(torchrun, "read_marker", lambda ref: None)
    monkeypatch.setattr(torchrun, "read_metadata", lambda ref, marker: saved)
    assert main(["train", str(config_file), "--allow-change", "model"]) == 4
    assert "model.d_model was 32 and is 64" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written_exits_5_before_ranks_start(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    assert main(["train", str(config_file)]) == 5
    assert f"{tmp_path}/run" in capsys.readouterr().err


def test_ray_that_is_not_installed_is_told_or_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.commands import choose_backend

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert choose_backend("local") == "local" and capsys.readouterr().err == ""
    assert choose_backend(None) == "local" and "ray is not installed" in capsys.readouterr().err
    assert exit_code_of(lambda: choose_backend("ray") and None) == 2
    assert "pip install ray" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    assert choose_backend(None) == "ray"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/a"
    write_resolved(load_config("quickstart.yaml"), folder)
    return folder


def test_checkpoints_are_listed_and_a_damaged_one_fails_the_check(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "list", str(run_dir)]) == 0
    assert "no committed checkpoint" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(run_dir)]) == 4
    capsys.readouterr()
    append_json_line(run_dir / "attempts.jsonl", {"generation": 1})
    ref = CheckpointRef.at(run_dir, 20, 1)
    ref.path.mkdir(parents=True)
    ref.marker.write_text("not a marker\n")
    assert main(["checkpoint", "list", str(run_dir)]) == 0
    assert "step         20  generation   1" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(run_dir)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("damaged") and "1 of 1 checkpoints damaged" in err
    append_json_line(run_dir / "attempts.jsonl", {"generation": 2, "committed": {}})
    assert main(["checkpoint", "list", str(run_dir)]) == 0
    assert "does not count: a later launch had begun" in capsys.readouterr().out


def test_known_runs_are_told_where_a_folder_is_none(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run_dir.parents[1])
    assert main(["report", "runs/b"]) == 2
    assert "here are runs/a" in capsys.readouterr().err


def test_every_command_of_the_help_has_a_handler() -> None:
    from launch import commands

    names = re.findall(r"^    ([a-z]+)", build_parser().format_help(), re.MULTILINE)
    assert names == [
        "quickstart",
        "prepare",
        "tokenizer",
        "train",
        "parity",
        "evaluate",
        "generate",
        "report",
        "checkpoint",
        "data",
        "submit",
        "status",
        "doctor",
    ]
    for name in ("list_checkpoints", "verify_checkpoints", "train_tokenizer", *names):
        assert name in ("tokenizer", "checkpoint", "data", "submit", "status") or callable(getattr(commands, name))


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert re.fullmatch(r"pretrain \S.*\n", capsys.readouterr().out)


def test_an_address_has_no_meaning_without_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "quickstart", "--backend", "local", "--address", "auto"]) == 2
    assert "--address auto: --backend local has no cluster" in capsys.readouterr().err
