"""A checkpoint on disk: its folder, its index, and the marker that makes it count. No torch: the launcher reads it too.

    runs/NAME/checkpoints/step-00000100/gen-1/
        rank-00000.safetensors   pieces of the weights and moments, one file a rank
        rank-00000.json          the index: which piece of which parameter lies under which key; size and hash of that file
        metadata.json            what the run was when it was saved
        COMMITTED                written last: the hashes of metadata and indexes

A chain of XXH3-128 hashes hangs on the marker: it vouches for metadata and indexes, an index for its tensors, and the
marker's second line for its first. safetensors alone cannot tell a flipped bit from a weight. `gen-1` counts the
launches of the run, so that a stale writer of an earlier launch never meets a new one; a generation counts once
attempts.jsonl has a row of it, and what it committed after the next launch had begun does not (fence.py).

A piece is described by what it is globally (parameter, split dim, flat range), not by the layout that wrote it, so that any
other layout can read it. Not taken: torch's distributed checkpoint (pickled metadata, no hashes, no fallback), DeepSpeed's
(pickle, not atomic). Nothing here is ever unpickled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from pretrain.checkpoint.boxes import Piece
from pretrain.checkpoint.fence import ATTEMPTS, read_fence
from pretrain.data.plan_segments import PlanSegment
from pretrain.engine.loss_scale import LossScale
from pretrain.errors import CheckpointError
from pretrain.files import hash_bytes, read_json_lines
from pretrain.settings import NonNegativeInt, PositiveInt, Settings, is_under, leaves

FORMAT = 2
MARKER = "COMMITTED"
METADATA = "metadata.json"
CHECKPOINTS = "checkpoints"

_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_GENERATION_FOLDER = re.compile(r"gen-([1-9]\d*)")

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Content = TypeVar("Content", bound=BaseModel)


_NOT_THE_MODEL = (
    "dropout",
    "attention_dropout",
    "initialization",
    "moe.auxiliary_loss",
    "moe.router_z_loss",
    "moe.bias_update_rate",
)
"""Model settings that may change between save and load: they shape neither the parameters nor the function. The last
three weigh what keeps experts apart while they train."""


class DamagedFile(CheckpointError):
    """One file of a checkpoint is not what was written."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what


class Region(Settings):
    """A contiguous piece of one parameter's state and where it lies in its file."""

    kind: Literal["weight", "exp_avg", "exp_avg_sq", "buffer"]
    name: str
    """Global name of the parameter."""
    shape: tuple[NonNegativeInt, ...]
    """Of the global parameter, without padding."""
    starts: tuple[NonNegativeInt, ...]
    lengths: tuple[NonNegativeInt, ...]
    """The box of the parameter that the writer's local tensor held: first index along each dim, and how many."""
    local_shape: tuple[NonNegativeInt, ...]
    """Of the local tensor in memory, padding included."""
    start: NonNegativeInt
    count: NonNegativeInt
    """The piece within the flattened local tensor."""
    dtype: str
    """As safetensors spells it."""
    key: str
    """Of the tensor in the file."""

    @property
    def piece(self) -> Piece:
        """Which elements of the parameter it holds."""
        return Piece(self.starts, self.lengths, self.local_shape, self.start, self.count)


class RankIndex(Settings):
    """What one rank wrote."""

    file: str
    size: NonNegativeInt
    hash: Hash
    regions: tuple[Region, ...]


class RunState(Settings):
    """What a resumed run needs beside weights and moments. There is no random state: every stream is a function of position."""

    model: dict[str, Any]
    """The model settings, resolved."""
    layout: dict[str, int]
    """tp, pp, dp and zero_stage of the writer."""
    precision: str
    next_sample: NonNegativeInt
    """Samples that the run has consumed: the position in the order."""
    targets: NonNegativeInt
    """Valid targets that the run has trained on."""
    skipped_steps: NonNegativeInt = 0
    """Attempts of the optimizer that left the parameters alone; Adam's own count is the step less these."""
    loss_scale: LossScale | None = None
    """Where the dynamic loss scale stands; of fp16 alone."""
    skipped_windows: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    """Ranges of samples [start, stop) that were passed over."""
    plan_hash: str
    """Of the order of samples, as far as they were consumed."""
    source_samples: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Of `next_sample`, those of each source."""
    segments: tuple[PlanSegment, ...] = ()
    """Which order of samples was in force from which step on; the last is that of the next sample."""
    tokenizer_hash: str
    wandb_id: str | None = None
    """The W&B run in which a resumed run goes on."""


class Metadata(Settings):
    """The content of metadata.json."""

    format: Literal[2]
    step: NonNegativeInt
    generation: PositiveInt
    model_hash: Hash
    state: RunState


class Marker(Settings):
    """The content of the marker: what was committed."""

    format: Literal[2]
    step: NonNegativeInt
    generation: PositiveInt
    metadata: Hash
    indexes: tuple[Hash, ...]
    """Of the index of each rank."""


@dataclass(frozen=True, order=True)
class CheckpointRef:
    """A place of a checkpoint, ordered by step, then generation. It says nothing about the content."""

    step: int
    generation: int
    path: Path = field(compare=False)

    @staticmethod
    def at(run_dir: Path, step: int, generation: int) -> "CheckpointRef":
        """Where a generation keeps the checkpoint of a step."""
        return CheckpointRef(step, generation, run_dir / CHECKPOINTS / f"step-{step:08d}" / f"gen-{generation}")

    @property
    def partial(self) -> Path:
        """Folder in which it is written before it is renamed."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def marker(self) -> Path:
        """The file whose presence commits it."""
        return self.path / MARKER

    def __str__(self) -> str:
        return f"step {self.step}, generation {self.generation} ({self.path})"


def tensor_file_name(rank: int) -> str:
    """Name of a rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def index_file_name(rank: int) -> str:
    """Name of a rank's index."""
    return f"rank-{rank:05d}.json"


def changes_of_launch(run_dir: Path, generation: int) -> list[str]:
    """What a launch changed of the config, as the launcher noted it: lines such as `data.dir: old -> new`."""
    rows = read_json_lines(run_dir / ATTEMPTS)
    return [str(change) for row in rows if row.get("generation") == generation for change in row.get("changes", ())]


def allowed_of_launch(run_dir: Path, generation: int) -> list[str]:
    """The fields that a launch may change, those that it did change included."""
    rows = [row for row in read_json_lines(run_dir / ATTEMPTS) if row.get("generation") == generation]
    named = [str(name) for row in rows for name in row.get("allowed", ())]
    return named + [change.split(":")[0] for change in changes_of_launch(run_dir, generation)]


def stored_checkpoints(run_dir: Path) -> list[CheckpointRef]:
    """Every checkpoint folder under its final name, committed or not, newest first."""
    found = []
    for folder in (run_dir / CHECKPOINTS).glob("step-*/gen-*"):
        step = _STEP_FOLDER.fullmatch(folder.parent.name)
        generation = _GENERATION_FOLDER.fullmatch(folder.name)
        if step and generation:
            found.append(CheckpointRef(int(step[1]), int(generation[1]), folder))
    return sorted(found, reverse=True)


def committed_checkpoints(run_dir: Path) -> list[CheckpointRef]:
    """Committed checkpoints that count, newest first. Whether they are whole is for `verify` to say."""
    fence = read_fence(run_dir)
    return [
        ref for ref in stored_checkpoints(run_dir) if fence.lets_pass(ref.step, ref.generation) and ref.marker.is_file()
    ]


def fenced_checkpoints(run_dir: Path) -> list[CheckpointRef]:
    """Committed checkpoints that do not count, newest first: a later launch of the run had begun before they were."""
    fence = read_fence(run_dir)
    late = (ref for ref in stored_checkpoints(run_dir) if not fence.lets_pass(ref.step, ref.generation))
    return [ref for ref in late if ref.generation in fence.registered and ref.marker.is_file()]


def latest_checkpoint(run_dir: Path) -> CheckpointRef | None:
    """The newest committed checkpoint of a run, not verified; None where there is none."""
    return next(iter(committed_checkpoints(run_dir)), None)


def check_same_model(metadata: Metadata, model: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming the settings that differ, where a checkpoint is of another model than a config's."""
    saved, now = dict(leaves(metadata.state.model)), dict(leaves(model))
    different = [
        f"model.{name} was {saved.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name) and not is_under(name, _NOT_THE_MODEL)
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint of step {metadata.step} is of another model: {'; '.join(different)}. "
            "Give the config its model back, or start a new run under another name"
        )


def encode_marker(marker: Marker) -> bytes:
    """Two lines: the content and its hash."""
    body = marker.model_dump_json().encode()
    return body + b"\n" + hash_bytes(body).encode() + b"\n"


def read_marker(ref: CheckpointRef) -> Marker:
    """What was committed. Raises DamagedFile."""
    content = _read(ref.marker)
    body = content.split(b"\n", 1)[0]
    if content != body + b"\n" + hash_bytes(body).encode() + b"\n":
        raise DamagedFile(ref.marker, "the marker's second line is not the hash of its first")
    marker = _parse(ref.marker, Marker, body)
    if (marker.step, marker.generation) != (ref.step, ref.generation):
        raise DamagedFile(
            ref.marker, f"it commits step {marker.step}, generation {marker.generation}: another folder's"
        )
    return marker


def read_metadata(ref: CheckpointRef, marker: Marker) -> Metadata:
    """What the run was. Raises DamagedFile."""
    return _read_hashed(ref.path / METADATA, Metadata, marker.metadata)


def read_index(ref: CheckpointRef, marker: Marker, rank: int) -> RankIndex:
    """What a rank wrote. Raises DamagedFile."""
    path = ref.path / index_file_name(rank)
    index = _read_hashed(path, RankIndex, marker.indexes[rank])
    if index.file != tensor_file_name(rank):
        raise DamagedFile(path, f"it describes {index.file!r} instead of {tensor_file_name(rank)!r}")
    return index


def _read_hashed(path: Path, kind: type[Content], expected: str) -> Content:
    content = _read(path)
    if hash_bytes(content) != expected:
        raise DamagedFile(path, f"its hash is {hash_bytes(content)}, committed was {expected}: the content has changed")
    return _parse(path, kind, content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror})") from error


def _parse(path: Path, kind: type[Content], content: bytes) -> Content:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DamagedFile(path, f"{where}: {first['msg']}; written by another version of this program?") from error
