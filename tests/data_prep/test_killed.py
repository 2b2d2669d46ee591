"""Workers and the head of the cluster, killed in the middle of a preparation: it ends with the same bytes."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.executors import Processes
from data_prep.ray_tasks import RayTasks
from pretrain.data.token_shards import read_manifest
from tests.data_prep.corpora import data_settings, output, run, write_texts

ROOT = Path(__file__).parents[2]


@dataclass
class KilledOnce:
    """A function whose process is killed at its third call, by whichever worker, and never again."""

    function: Callable[[Any], Any]
    marks: Path

    def __call__(self, task: Any) -> Any:
        number = len(list(self.marks.iterdir()))
        (self.marks / f"{os.getpid()}-{number}").touch()
        if number >= 2 and not (self.marks / "killed").exists():
            (self.marks / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(task)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("corpus") / "texts", 30)


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    run(data_settings(folder, corpus, task_bytes=4000))
    return folder


def dying(kind: type, marks: Path) -> type:
    """An executor of a kind, whose workers meet `KilledOnce` in both passes."""

    class Dying(kind):
        def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
            place = marks / function.__name__
            place.mkdir(parents=True)
            return super().run(KilledOnce(function, place), tasks)

    return Dying


def test_a_killed_worker_process_changes_no_byte(
    corpus: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.pipeline.Processes", dying(Processes, tmp_path / "marks"))
    report = run(data_settings(tmp_path / "data", corpus, task_bytes=4000), workers=4)
    assert report.deaths == 2 and any("died 2 times and were replaced" in line for line in report.lines())
    assert output(tmp_path / "data") == output(prepared)


def test_a_killed_ray_worker_changes_no_byte(
    corpus: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_tasks: RayTasks
) -> None:
    monkeypatch.setattr("data_prep.pipeline.RayTasks", dying(RayTasks, tmp_path / "marks"))
    run(data_settings(tmp_path / "data", corpus, task_bytes=4000), backend="ray", workers=2)
    assert (tmp_path / "marks" / "shard_and_keep" / "killed").exists()
    assert output(tmp_path / "data") == output(prepared)


HEAD_KILLED = textwrap.dedent(
    """
    import sys, threading
    from pathlib import Path

    import psutil

    import data_prep.ray_tasks
    from pretrain.errors import RankFault
    from tests.data_prep.corpora import data_settings, run
    from tests.data_prep.test_killed import Slowly

    data_prep.ray_tasks.HEAD_CHECK_S, data_prep.ray_tasks.HEAD_CHECKS = 0.2, 2
    submit = data_prep.ray_tasks.RayTasks.run

    def slowly(self, function, tasks):
        for result in submit(self, Slowly(function), tasks):
            yield result
            for process in psutil.Process().children(recursive=True):
                if function.__name__ == "shard_and_keep" and process.name() == "gcs_server":
                    process.kill()

    data_prep.ray_tasks.RayTasks.run = slowly
    try:
        run(data_settings(Path(sys.argv[1]), Path(sys.argv[2]), task_bytes=4000), "ray", 2)
    except RankFault as error:
        print(error)
    """
)


@dataclass
class Slowly:
    """A function that takes its time."""

    function: Callable[[Any], Any]

    def __call__(self, task: Any) -> Any:
        import time

        result = self.function(task)
        time.sleep(0.5)
        return result


def test_a_killed_head_is_told_and_the_next_run_makes_what_is_missing(
    corpus: Path, prepared: Path, tmp_path: Path, ray_tasks: RayTasks
) -> None:
    folder = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-c", HEAD_KILLED, str(folder), str(corpus)], cwd=ROOT, capture_output=True, text=True
    )
    # Which part of Ray notices first is a matter of luck: this process, or the node.
    assert "Ray" in done.stdout and "finished tasks are kept: run it again" in done.stdout, done.stderr[-2000:]
    assert not read_manifest(folder).complete
    report = run(data_settings(folder, corpus, task_bytes=4000))
    assert report.tasks_skipped >= 1
    assert output(folder) == output(prepared)
