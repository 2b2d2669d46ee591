"""Whether all nodes of a run would do the same: the code, what it runs on, and the resolved config."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrain.config import RunConfig
from pretrain.files import hash_bytes, hash_file
from pretrain.metrics.facts import installed_versions

PACKAGES = ("pretrain", "launch", "data_prep")

Facts = Mapping[str, str]
"""What a node does, by name: versions as they are, code and sections of the config as hashes."""

_HASH_LENGTH = 32
_TOLD = {"code": "the code (the packages' .py files)", "python": "the version of Python"}


def facts_of(config: RunConfig) -> dict[str, str]:
    """Those of this node, for a resolved config."""
    sections = {
        f"config section {name}": hash_bytes(json.dumps(value, sort_keys=True).encode())
        for name, value in config.model_dump(mode="json").items()
    }
    versions = {f"the version of {name}": told for name, told in installed_versions(("torch", "deepspeed")).items()}
    return {"code": code_hash(), "python": platform.python_version(), **versions, **sections}


def code_hash(root: Path = Path(__file__).parents[1]) -> str:
    """Of every .py file of the packages, by its path within `root`."""
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    listed = "\n".join(f"{file.relative_to(root)} {hash_file(file)}" for file in files)
    return hash_bytes(listed.encode())


def disagreement(nodes: Sequence[tuple[str, Facts]]) -> str | None:
    """What nodes, each with its name, differ in from the first; None where all agree. Names may occur twice."""
    (first, expected), *others = nodes
    told = [f"{name}: {differences}" for name, found in others if (differences := _differences(expected, found, first))]
    if not told:
        return None
    return "the nodes would not train the same; install one version and give one config on all:\n" + "\n".join(told)


def _differences(expected: Facts, found: Facts, first: str) -> str:
    told = []
    for key in expected.keys() | found.keys():
        mine, other = found.get(key, "none"), expected.get(key, "none")
        if mine != other:
            shows = len(mine) < _HASH_LENGTH
            told.append(
                _TOLD.get(key, key) + (f" is {mine}, on {first} {other}" if shows else f" differs from that on {first}")
            )
    return "; ".join(sorted(told))
