"""What an installed package must hold; the make-up of pyproject.toml is held against the tree."""

import itertools
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_of_the_tree_is_installed() -> None:
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("pretrain", "data_prep", "launch")
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert found | {"pretrain.configs", "launch.templates"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_batch_script_and_config_is_installed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    for package, suffix in (("launch.templates", ".sbatch"), ("pretrain.configs", ".yaml")):
        folder = ROOT / setuptools["package-dir"][package]
        there = {file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")}
        assert there == {file for pattern in setuptools["package-data"][package] for file in folder.glob(pattern)}
        assert there and {file.suffix for file in there} == {suffix}


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("pretrain", "data_prep", "launch"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_no_package_imports_torch_when_it_is_entered() -> None:
    """Settings are imported through their room's __init__.py: a config's mistake must not wait for torch."""
    for top in ("pretrain", "data_prep", "launch"):
        for file in (ROOT / top).rglob("__init__.py"):
            assert "import" not in file.read_text().replace("imported", "").replace("imports", ""), file


def test_every_dependency_has_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("\n]")[0].splitlines()
    for above, line in itertools.pairwise(lines):
        if line.strip().startswith('"'):
            assert above.strip().startswith("#"), line


@pytest.mark.parametrize("name", ["torch>=2.11,<=2.13.0"])
def test_torch_is_bounded_to_what_was_tried(name: str) -> None:
    assert name in PROJECT["project"]["dependencies"]
