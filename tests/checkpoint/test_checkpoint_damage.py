import pickle
import shutil
from pathlib import Path

import pytest

from pretrain.checkpoint.format import CheckpointRef, Marker, check_same_model, encode_marker, read_index, read_marker
from pretrain.checkpoint.load import find_checkpoint, load_weights, read_run_state, restore
from pretrain.checkpoint.save import save
from pretrain.checkpoint.verify import verify
from pretrain.errors import CheckpointError
from pretrain.files import hash_bytes
from pretrain.parallel.mesh import ProcessMesh
from tests.checkpoint.fake_engine import (
    MODEL,
    SPECS,
    FakeEngine,
    Spec,
    assert_equal_state,
    launch,
    run_state,
    trained_engine,
)

MESH = ProcessMesh.single()
FILES = ("rank-00000.safetensors", "rank-00000.json", "metadata.json", "COMMITTED")


@pytest.fixture
def two(tmp_path: Path) -> tuple[CheckpointRef, CheckpointRef]:
    """Checkpoints of steps 1 and 2."""
    launch(tmp_path, 1)
    return save(trained_engine(1), tmp_path, 1, run_state()).ref, save(trained_engine(2), tmp_path, 1, run_state()).ref


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found_and_its_file_named(two: tuple[CheckpointRef, CheckpointRef], name: str) -> None:
    path = two[1].path / name
    bits = path.stat().st_size * 8
    for bit in range(0, bits, max(1, bits // 300) | 1):
        flip(path, bit)
        with pytest.raises(CheckpointError) as caught:
            verify(two[1])
        assert str(path) in str(caught.value)
        flip(path, bit)
    verify(two[1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing", "longer", "folder"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    tmp_path: Path, two: tuple[CheckpointRef, CheckpointRef], name: str, damage: str
) -> None:
    path = two[1].path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        flipped = bytes([content[0] ^ 1]) + content[1:]
        changed = {"flip": flipped, "truncate": content[: len(content) // 2], "empty": b"", "longer": content + b"\0"}
        path.write_bytes(changed[damage])
    reports: list[tuple[CheckpointRef, list[str]]] = []
    ref = find_checkpoint(tmp_path, MESH, lambda *report: reports.append(report))
    assert ref == two[0]
    if name == "COMMITTED" and damage in ("missing", "folder"):
        assert reports == []  # without its marker it was never committed
    else:
        assert [reported for reported, _ in reports] == [two[1]]
        assert str(path) in reports[0][1][0]
    fresh = FakeEngine(MESH)
    restore(fresh, two[0])
    assert_equal_state(fresh, trained_engine(1))


def test_when_all_are_damaged_it_is_an_error_that_names_the_newest(
    tmp_path: Path, two: tuple[CheckpointRef, CheckpointRef]
) -> None:
    for ref in two:
        flip(ref.path / "rank-00000.safetensors", 4000)
    with pytest.raises(CheckpointError, match=r"every checkpoint of .* is damaged; the newest: .*step-00000002.*hash"):
        find_checkpoint(tmp_path, MESH, lambda *_: None)


def test_weights_are_verified_before_they_are_handed_out(two: tuple[CheckpointRef, CheckpointRef]) -> None:
    assert set(load_weights(two[1])) == set(SPECS)
    flip(two[1].path / "rank-00000.safetensors", 9001)
    with pytest.raises(CheckpointError, match="the content has changed"):
        load_weights(two[1])


def test_parts_of_two_checkpoints_do_not_make_one(two: tuple[CheckpointRef, CheckpointRef]) -> None:
    for name in FILES[:2]:
        shutil.copy(two[0].path / name, two[1].path / name)
    with pytest.raises(CheckpointError, match=r"rank-00000\.json"):
        verify(two[1])


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self._canary, "gotcha")


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_ever_unpickled_even_with_matching_hashes(
    tmp_path: Path, two: tuple[CheckpointRef, CheckpointRef], name: str
) -> None:
    canary, ref = tmp_path / "canary", two[1]
    bomb = pickle.dumps(Exploit(canary))
    pickle.loads(bomb)
    assert canary.exists()
    canary.unlink()
    (ref.path / name).write_bytes(bomb)
    (ref.path / "mp_rank_00_model_states.pt").write_bytes(bomb)
    forge_hashes(ref, name)
    with pytest.raises(CheckpointError):
        load_weights(ref)
    with pytest.raises(CheckpointError):
        restore(FakeEngine(MESH), ref)
    assert not canary.exists()


def forge_hashes(ref: CheckpointRef, changed: str) -> None:
    """Makes every hash match what lies there now, as an attacker would."""
    if changed == "COMMITTED":
        return
    if changed == "rank-00000.safetensors":
        content = (ref.path / changed).read_bytes()
        index = read_index(ref, read_marker(ref), 0)
        forged = index.model_copy(update={"size": len(content), "hash": hash_bytes(content)})
        (ref.path / "rank-00000.json").write_text(forged.model_dump_json())
    marker = Marker(
        format=2,
        step=ref.step,
        generation=ref.generation,
        metadata=hash_bytes((ref.path / "metadata.json").read_bytes()),
        indexes=(hash_bytes((ref.path / "rank-00000.json").read_bytes()),),
    )
    ref.marker.write_bytes(encode_marker(marker))


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, two: tuple[CheckpointRef, CheckpointRef]) -> None:
    ref = two[1]
    index = read_index(ref, read_marker(ref), 0)
    outside = tmp_path / "outside.safetensors"
    shutil.copy(ref.path / index.file, outside)
    forged = index.model_copy(update={"file": "../../../outside.safetensors"})
    (ref.path / "rank-00000.json").write_text(forged.model_dump_json())
    forge_hashes(ref, "rank-00000.json")
    with pytest.raises(CheckpointError, match=r"it describes '\.\./\.\./\.\./outside\.safetensors'"):
        load_weights(ref)


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        (
            {**SPECS, "layers.1.up.weight": Spec((6, 4), 0, 1)},
            r"layers\.1\.up\.weight has the shape \[8, 4\] there and \[6, 4\]",
        ),
        ({**SPECS, "layers.2.norm.weight": Spec((4,), None, 1)}, r"no weight of the parameter layers\.2\.norm\.weight"),
        (
            {k: v for k, v in SPECS.items() if k != "layers.1.norm.weight"},
            r"no place for its exp_avg of layers\.1\.norm\.weight and 2 more",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_parameter_that_differs(
    two: tuple[CheckpointRef, CheckpointRef],
    specs: dict[str, Spec],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.checkpoint.fake_engine.SPECS", {**SPECS, **specs})
    engine = FakeEngine(MESH, specs)
    with pytest.raises(CheckpointError, match=told):
        restore(engine, two[1])
    assert engine.finished_loads == []


def test_a_model_setting_that_differs_is_named_and_dropout_may_differ(two: tuple[CheckpointRef, CheckpointRef]) -> None:
    metadata = read_run_state(two[1])
    check_same_model(metadata, {**MODEL, "dropout": 0.3})
    with pytest.raises(CheckpointError, match=r"model\.positions was 'rotary' and is 'learned'"):
        check_same_model(metadata, {**MODEL, "positions": "learned"})


def test_a_setting_of_experts_that_differs_is_named_alone_and_their_losses_may_differ(
    two: tuple[CheckpointRef, CheckpointRef],
) -> None:
    metadata = read_run_state(two[1])
    experts = {"num_experts": 4, "d_ff": 8, "bias_update_rate": 0.001}
    state = metadata.state.model_copy(update={"model": {**MODEL, "moe": experts}})
    saved = metadata.model_copy(update={"state": state})
    check_same_model(saved, {**MODEL, "moe": {**experts, "bias_update_rate": 0.01}})
    with pytest.raises(CheckpointError, match=r"another model: model\.moe\.num_experts was 4 and is 8\."):
        check_same_model(saved, {**MODEL, "moe": {**experts, "num_experts": 8}})
