"""What is noted once about an attempt of a run: versions, code, host, data; and the removal of secrets from all that is noted.

Versions are read from installed metadata, so nothing is imported for them. Of the code's repository only the commit and
whether it was changed are noted, never its remote (which may hold credentials).
"""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

REDACTED = "[redacted]"
PACKAGES = ("pretrain", "torch", "deepspeed", "numpy", "tokenizers", "safetensors", "pydantic", "wandb", "ray")
GIT_TIMEOUT_S = 5.0

_SECRET_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@:]+:[^/\s@]+(?=@)")
_SHORTEST_SECRET = 8
"""Shorter values of secret environment variables are not searched for in texts: they would hit innocent words."""


def collect_facts(
    *,
    layout: Mapping[str, int],
    seed: int,
    precision: str,
    device: str,
    hosts: Sequence[str] = (),
    manifest_hash: str | None = None,
    tokenizer_hash: str | None = None,
) -> dict[str, Any]:
    """The facts of this attempt.

    Args:
        layout: sizes of the axes and the ZeRO stage.
        seed: the run's one seed.
        precision, device: as resolved, never `auto`.
        hosts: names of all nodes; by default this one.
        manifest_hash, tokenizer_hash: of the prepared data.
    """
    return {
        "layout": dict(layout),
        "seed": seed,
        "precision": precision,
        "device": device,
        "manifest_hash": manifest_hash,
        "tokenizer_hash": tokenizer_hash,
        "hosts": list(hosts) or [platform.node()],
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **installed_versions()},
        "git": git_state(Path(__file__).parent),
        "slurm": slurm_start(os.environ),
    }


def slurm_start(environment: Mapping[str, str]) -> dict[str, int] | None:
    """The Slurm job that this process runs in, and how often the job was started before; None outside of Slurm."""
    job, restart = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_RESTART_COUNT", "")
    return {"job": int(job), "restart": int(restart) if restart.isdecimal() else 0} if job.isdecimal() else None


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository that holds a folder, and whether tracked files differ from it; None without one.

    A folder that a repository around it does not track (an environment inside someone's checkout) counts as without.
    """
    if not _git(folder, "ls-files", "--", "."):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": changes is None or changes != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def redact(value: Any) -> Any:
    """A copy without secrets: texts under names like *KEY*, *TOKEN* or *SECRET*, and such variables' values anywhere.

    `max_tokens: 96` and `tokenizer: {...}` stay: a secret is a text, and `token` a whole word of the name.
    """
    return _redact(value, _environment_secrets())


def _redact(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: REDACTED if isinstance(inner, str) and inner and is_secret_name(str(key)) else _redact(inner, secrets)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(inner, secrets) for inner in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
        return _URL_CREDENTIALS.sub(REDACTED, value)
    return value


def is_secret_name(name: str) -> bool:
    """Whether a key or an environment variable is named like one that holds a secret."""
    return not _SECRET_WORDS.isdisjoint(word.lower() for word in _WORD.findall(name))


def _environment_secrets() -> list[str]:
    values = {v for name, v in os.environ.items() if is_secret_name(name) and len(v) >= _SHORTEST_SECRET}
    return sorted(values, key=len, reverse=True)
