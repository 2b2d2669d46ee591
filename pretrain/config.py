"""RunConfig: one frozen tree that says all of a run, composed of the settings that each folder owns.

    config = load_config("configs/quickstart.yaml", ["train.steps=200", "layout.tp=2"])

A config file holds any part of the tree; `extends` lays files under it (a model, a data set, another run), `--set` over it.
Sections are merged, everything else is replaced. The name of a run is its own file's `name`, else the file's name: it is never
inherited, or two runs would share a folder.

`auto` values are filled in by `pretrain.resolve`; the result is kept as `config.yaml` in the run's folder and is what the ranks
read. Nothing here imports torch: a mistake is told in a fraction of a second.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pretrain.checkpoint.settings import CheckpointSettings
from pretrain.config_check import section_of, validate
from pretrain.config_source import (
    Document,
    KeyPath,
    apply_override,
    find_config,
    parse_yaml,
    read_document,
    split_override,
)
from pretrain.data.settings import DataSettings
from pretrain.engine.settings import TrainSettings
from pretrain.errors import ConfigError
from pretrain.files import storage_error, write_atomically
from pretrain.metrics.settings import EvaluationSettings, LoggingSettings, SampleSettings
from pretrain.model.settings import ModelSettings
from pretrain.optim.settings import OptimizerSettings, ScheduleSettings
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.settings import LayoutSettings
from pretrain.settings import NonNegativeInt, Settings

RESOLVED_NAME = "config.yaml"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunSettings(Settings):
    """Where a run lives and the one number that all its randomness comes from."""

    dir: str | None = None
    """Folder of the run; None: `runs/` and the run's name, under the folder where the command is started."""
    seed: NonNegativeInt = 1234
    """Initial weights, dropout and the order of samples derive from it, the same under every layout."""


class RunConfig(Settings):
    """All of a run."""

    name: str
    """Of the run: letters, digits, dots, dashes and underscores. By default the config file's name."""
    run: RunSettings = RunSettings()
    model: ModelSettings
    layout: LayoutSettings = LayoutSettings()
    data: DataSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    train: TrainSettings
    checkpoint: CheckpointSettings = CheckpointSettings()
    logging: LoggingSettings = LoggingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    samples: SampleSettings = SampleSettings()

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path("runs") / self.name if self.run.dir is None else Path(self.run.dir).expanduser()

    @property
    def data_dir(self) -> Path:
        """Folder of the prepared data."""
        return Path(self.data.dir).expanduser()

    @property
    def global_batch_sequences(self) -> int:
        """Sequences of one step over all ranks."""
        return self.train.global_batch_tokens // self.data.sequence_length

    @property
    def parallel_layout(self) -> ParallelLayout:
        """The grid of ranks. Only a resolved config has one."""
        pp, dp = self.layout.pp, self.layout.dp
        assert not isinstance(pp, str) and not isinstance(dp, str), "the layout is not resolved yet"
        layout = self.layout
        return ParallelLayout(pp=pp, dp=dp, tp=layout.tp, ring=layout.ring, ulysses=layout.ulysses, ep=layout.ep)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a file with `--set` texts (`a.b=VALUE`) laid over it. Raises ConfigError, StorageError."""
    file = find_config(str(path))
    document = read_document(file)
    document.tree.setdefault("name", file.name.removesuffix(file.suffix))
    for text in overrides:
        apply_override(document, text, _list_default(split_override(text)[0]))
    return _validated(document, str(path))


def _validated(document: Document, source: str) -> RunConfig:
    config = validate(RunConfig, document, source)
    if not _SAFE_NAME.fullmatch(config.name):
        raise ConfigError(
            f"{document.source(('name',)) or source}: name must be letters, digits, dots, dashes and underscores, "
            f"not {config.name!r}; it names the run's folder"
        )
    return config


def _list_default(path: KeyPath) -> Sequence[Any] | None:
    """The default of the list that a path with a position points into; None for other paths."""
    part: type[Any] | None = RunConfig
    for depth, key in enumerate(path[:-1]):
        info = part.model_fields.get(key) if part is not None else None
        if info is None:
            return None
        if path[depth + 1].isdigit():
            default = info.get_default()
            return default if isinstance(default, tuple) else ()
        part = section_of(info)
    return None


def read_resolved(run_dir: str | Path) -> RunConfig:
    """The config that a run was started with. Raises ConfigError where the folder holds none."""
    path = Path(run_dir) / RESOLVED_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{run_dir}: not the folder of a run (it has no {RESOLVED_NAME}); start one: pretrain train"
        ) from None
    except OSError as error:
        raise storage_error(error, path) or ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return _validated(parse_yaml(text, str(path)), str(path))


def to_yaml(config: RunConfig) -> str:
    """The whole tree as YAML, defaults written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def write_resolved(config: RunConfig, run_dir: str | Path) -> None:
    """Keeps the resolved config in the run's folder. Raises StorageError."""
    text = "# The run's resolved config, written at its start. Change a run by its command: --set, --allow-change.\n"
    write_atomically(Path(run_dir) / RESOLVED_NAME, text + to_yaml(config))


def absolute(path: Path) -> str:
    """A path that holds from any folder; links are kept as they are."""
    return os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow links)
