"""Slurm's programs as tests need them: they keep what they were given, and say what they are told to."""

import os
from pathlib import Path

import pytest

SBATCH = """#!/bin/bash
number=$(( $(ls "$FAKE/calls" | wc -l) + 1 ))
mkdir -p "$FAKE/calls/$number"
printf '%s\\0' "$@" > "$FAKE/calls/$number/argv"
env -0 > "$FAKE/calls/$number/environment"
if [ -e "$FAKE/refusal" ] && [ "$number" -ge "$(cat "$FAKE/refuse-from")" ]; then cat "$FAKE/refusal" >&2; exit 1; fi
echo "$((100 + number))"
"""
SAYS = """#!/bin/bash
[ ! -e "$FAKE/{tool}.fails" ] || {{ cat "$FAKE/{tool}.fails" >&2; exit 1; }}
for word in "$@"; do case $word in --jobs=*) jobs=${{word#--jobs=}} ;; esac; done
if [ -n "${{jobs:-}}" ]; then grep -E "^(${{jobs//,/|}})[|]" "$FAKE/{tool}"; else cat "$FAKE/{tool}"; fi 2>/dev/null || :
"""


class FakeSlurm:
    """sbatch, squeue and scontrol on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "calls").mkdir(parents=True)
        (folder / "bin").mkdir()
        for tool, text in {"sbatch": SBATCH, "squeue": SAYS, "scontrol": SAYS}.items():
            file = folder / "bin" / tool
            file.write_text(text.format(tool=tool) if text is SAYS else text)
            file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("FAKE", str(folder))

    def queue(self, *lines: str) -> None:
        """What squeue says from now on."""
        (self.folder / "squeue").write_text("".join(f"{line}\n" for line in lines))

    def fail(self, tool: str, message: str) -> None:
        """The tool fails from now on."""
        (self.folder / f"{tool}.fails").write_text(message)

    def refuse(self, message: str, call: int = 1) -> None:
        """sbatch refuses from a call on."""
        (self.folder / "refusal").write_text(message)
        (self.folder / "refuse-from").write_text(str(call))

    @property
    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        """Arguments and environment of each call of sbatch."""
        found = []
        for number in range(1, len(list((self.folder / "calls").iterdir())) + 1):
            call = self.folder / "calls" / str(number)
            argv = (call / "argv").read_text().split("\0")[:-1]
            words = [word for word in (call / "environment").read_text().split("\0") if "=" in word]
            found.append((argv, dict(word.split("=", 1) for word in words)))
        return found
