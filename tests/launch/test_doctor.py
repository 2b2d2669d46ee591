"""`pretrain doctor`: each missing thing is named with its fix, and nothing secret is printed."""

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from launch import doctor
from launch.cli import main
from launch.doctor import requirement_texts


def test_this_machine_lacks_nothing_that_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for subject in ("python", "torch", "deepspeed", "ray", "cpu", "gpu", "disk", "wandb mode"):
        assert f" {subject} " in out
    assert "everything that is needed is here" in out


def test_a_missing_package_is_named_with_its_fix_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name in ("deepspeed", "ray"):
            raise metadata.PackageNotFoundError(name)
        return {"torch": "2.5.1"}.get(name) or real(name)

    real = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_packages,))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "missing deepspeed" in out and "-> pip install 'deepspeed" in out
    assert "missing torch" in out and "2.5.1 is outside" in out
    assert "note    ray" in out and "--backend local" in out
    assert "2 needed thing(s) missing" in out


def test_a_python_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    (finding,) = doctor.check_python()
    assert finding.level == "missing" and "3.11 to 3.13 is needed" in finding.text and finding.fix


def test_a_torch_that_cannot_load_is_told_by_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(returncode=1, stdout="", stderr="Traceback ...\nImportError: libsomething.so: not found\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: broken)
    (finding,) = doctor.check_torch()
    assert (finding.level, finding.text) == ("missing", "ImportError: libsomething.so: not found")


def test_a_gpu_without_a_build_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_capabilities", lambda: [9, 9])
    monkeypatch.setattr(doctor, "torch_has_cuda", lambda: False)
    assert any(
        f.subject == "gpu" and "2 visible" in f.text and "TORCH_INDEX_URL" in f.fix for f in doctor.check_devices()
    )


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8, used=0, total=10**9))
    finding = doctor.check_disk()[0]
    assert (finding.subject, finding.level) == ("disk", "note")
    assert "0.1 GB free" in finding.text and "run.dir" in finding.fix


def test_the_key_of_wandb_is_never_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    canary = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", canary)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_wandb,))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "a key is configured" in out and canary not in out


def test_requirements_are_known_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", absent)
    assert any(text.startswith("torch") for text in requirement_texts())
