"""A config with a data folder that the launcher accepts; no rank of these tests reads it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.folders import text_documents, write_folder
from tests.launch.driver import Launcher, Way
from tests.launch.slurm_fakes import FakeSlurm

SMALL = """
name: small
run: {{dir: {folder}/run}}
model: {{d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128}}
data: {{dir: {folder}/data, sequence_length: 32}}
train: {{steps: 100, global_batch_tokens: 256, micro_batch_sequences: 1, device: cpu, precision: fp32}}
"""


@pytest.fixture(scope="session")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    write_folder(folder, text_documents(500, 1, vocab_size=300), text_documents(500, 2, vocab_size=300), vocab_size=300)
    (folder / "token_bytes.bin").write_bytes(b"\1\0" * 300)
    return folder


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's programs on the PATH, with an empty queue."""
    return FakeSlurm(tmp_path / "fake", monkeypatch)


@pytest.fixture
def config_file(tmp_path: Path, _data: Path) -> Path:
    shutil.copytree(_data, tmp_path / "data")
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.format(folder=tmp_path))
    return file


@pytest.fixture(autouse=True)
def _ranks_find_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)


@pytest.fixture
def start(config_file: Path, tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    """Starts a launcher whose ranks are of a mode; further arguments are those of `Way`."""
    launchers: list[Launcher] = []

    def started(mode: str, **way: Any) -> Launcher:
        errors = tmp_path / f"launcher-{len(launchers)}.err"
        launchers.append(Launcher(config_file, tmp_path / "run", errors, Way(mode, **way)))
        return launchers[-1]

    yield started
    for launcher in launchers:
        launcher.close()
