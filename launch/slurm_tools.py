"""sbatch and scontrol as `pretrain submit` uses them: argument lists, no shell, bounded waits, messages a user can act on."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from pretrain.errors import ConfigError, PretrainError

TOOL_TIMEOUT_S = 120
"""A controller under load answers late; sbatch itself tries for a while."""
_KEPT = frozenset({"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"})
_UNREACHABLE = re.compile(
    r"contact|connect|timed out|communication|socket|zero bytes|resource temporarily|configuration source",
    re.IGNORECASE,
)


def sbatch(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Submits a job and returns its number.

    Raises ConfigError where sbatch refuses the job, PretrainError (exit code 70) where the controller cannot be reached.
    """
    said = _ask(command, job_environment(os.environ, variables))
    number = said.strip().splitlines()[-1].split(";")[0] if said.strip() else ""
    if not number.isdecimal():
        raise PretrainError(f"sbatch gave no job number but {said.strip()!r}")
    return int(number)


def job_environment(given: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """What a job inherits: the user's environment without what belongs to another job, and the job's own variables."""
    foreign = {name for name in given if name.startswith(("SLURM_", "PRETRAIN_")) and name not in _KEPT}
    return {name: value for name, value in given.items() if name not in foreign} | dict(variables)


def ended_job(number: int) -> tuple[str, int] | None:
    """State and exit code of a job that left the queue; None where Slurm has forgotten it."""
    try:
        said = _ask(["scontrol", "show", "job", "--oneliner", str(number)])
    except PretrainError:
        return None
    fields = dict(word.split("=", 1) for word in said.splitlines()[-1].split() if "=" in word) if said else {}
    if "JobState" not in fields:
        return None
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    return fields["JobState"], int(code) or (128 + int(signal) if int(signal or 0) else 0)


def check_known(number: int) -> None:
    """Raises ConfigError where Slurm does not know the job that another shall wait for: it would not wait at all."""
    try:
        _ask(["scontrol", "show", "job", "--oneliner", str(number)])
    except ConfigError as error:
        raise ConfigError(
            f"--after {number}: Slurm knows no such job, or has forgotten it ({error}); `squeue --me` lists yours"
        ) from None


def require(tool: str) -> None:
    """Raises ConfigError where a program of Slurm is not there."""
    if shutil.which(tool) is None:
        raise ConfigError(
            f"{tool} is not on the PATH: jobs are submitted on a login node of a Slurm cluster; `--dry-run` shows the script "
            "anywhere, and `pretrain train` trains on this machine"
        )


def _ask(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    tool = command[0]
    require(tool)
    try:
        done = subprocess.run(
            list(command),
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PretrainError(f"{tool} gave no answer for {TOOL_TIMEOUT_S} s; is the controller up? (`sinfo`)") from None
    if done.returncode:
        told = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}, without a word"
        if _UNREACHABLE.search(told):
            raise PretrainError(f"{tool} cannot reach Slurm: {told}")
        raise ConfigError(f"{tool} refused: {told}")
    return done.stdout
