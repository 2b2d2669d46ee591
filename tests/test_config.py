"""The config: what a file may say, what is told of a mistake, and how fast."""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.config import RunConfig, load_config, read_resolved, to_yaml, write_resolved
from pretrain.config_check import field_paths
from pretrain.config_source import parse_yaml, shipped_configs
from pretrain.errors import ConfigError

SMALL = """
model: {d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128}
data: {dir: data/small, sequence_length: 32}
train: {steps: 10, global_batch_tokens: 256, micro_batch_sequences: 4}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.yaml", SMALL)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def leaves(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        yield (*prefix, key), value
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))


# --- what a config is -------------------------------------------------------------------------------------------------


def test_a_config_takes_its_files_name(small: Path) -> None:
    assert load_config(small).name == "small"
    assert load_config(small).run_dir == Path("runs/small")


def test_numbers_are_those_of_yaml_1_2(small: Path) -> None:
    config = load_config(small, ["optimizer.peak_lr=1e-3", "train.steps=1_000", "optimizer.clip_norm=null", "name=off"])
    assert (config.optimizer.peak_lr, config.train.steps, config.optimizer.clip_norm) == (1e-3, 1000, None)
    assert config.name == "off"


def test_extends_merges_sections_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path / "parts/base.yaml", SMALL + "samples: {prompts: [a, b], max_tokens: 5}\n")
    child = write(
        tmp_path / "child.yaml", "extends: parts/base.yaml\nsamples: {prompts: [c]}\nmodel: {num_layers: 3}\n"
    )
    config = load_config(child)
    assert config.samples.prompts == ("c",)
    assert (config.samples.max_tokens, config.model.num_layers, config.model.d_model) == (5, 3, 64)


def test_later_files_of_extends_win_and_the_file_itself_last(tmp_path: Path) -> None:
    write(tmp_path / "one.yaml", SMALL + "run: {seed: 1}\n")
    write(tmp_path / "two.yaml", "run: {seed: 2}\nlayout: {tp: 2}\n")
    child = write(tmp_path / "child.yaml", "extends: [one.yaml, two.yaml]\nlayout: {tp: 4}\n")
    config = load_config(child)
    assert (config.run.seed, config.layout.tp) == (2, 4)


def test_a_name_is_not_inherited(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "name: base-run\n" + SMALL)
    child = write(tmp_path / "child.yaml", "extends: base.yaml\n")
    assert load_config(tmp_path / "base.yaml").name == "base-run"
    assert load_config(child).name == "child"


def test_a_shipped_config_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = load_config("quickstart.yaml")
    assert load_config("configs/quickstart.yaml") == wanted == load_config("quickstart")
    mine = write(tmp_path / "mine.yaml", "extends: quickstart.yaml\ntrain: {steps: 30}\n")
    assert load_config(mine).train.steps == 30


@pytest.mark.parametrize("path", sorted(p.name for p in shipped_configs().glob("*.yaml")))
def test_a_resolved_file_reads_back_as_the_same_config(path: str, tmp_path: Path) -> None:
    config = load_config(path)
    write_resolved(config, tmp_path)
    assert read_resolved(tmp_path) == config


# --- --set ------------------------------------------------------------------------------------------------------------


def test_set_reaches_every_leaf(small: Path) -> None:
    """Setting any field to the value it has changes nothing; a path that --set cannot reach would be refused."""
    full = small.with_name("full.yaml")
    experts = ["model.moe.num_experts=4", "model.moe.experts_per_token=2", "model.moe.d_ff=8"]
    sections = ["data.prepare.corpus.source=text", "data.cache.dir=cache", *experts]
    cleaning = ("language", "gopher_quality", "gopher_repetition", "c4", "fineweb", "personal_data")
    sections += [f"data.prepare.cleaning.{step}={{}}" for step in cleaning]
    sections += ["data.prepare.decontamination.paths=[eval.txt]"]
    config = load_config(small, [*sections, "name=full"])
    full.write_text(to_yaml(config))
    tree = config.model_dump(mode="json")
    seen = set()
    for path, value in leaves(tree):
        seen.add(".".join(path))
        if not isinstance(value, dict):
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
            assert load_config(full, [f"{'.'.join(path)}={text}"]) == config, path
    assert seen >= set(field_paths(RunConfig))


def test_set_changes_a_list_by_position(small: Path) -> None:
    config = load_config(small, ["samples.prompts=[a, b]", "samples.prompts.1=def ", "optimizer.betas.1=0.99"])
    assert config.samples.prompts == ("a", "def ")
    assert config.optimizer.betas == (0.9, 0.99)
    assert load_config(small, ["samples.prompts.0=a", "samples.prompts.1=b"]).samples.prompts == ("a", "b")


def test_set_past_a_lists_end_tells_its_positions(small: Path) -> None:
    assert "samples.prompts is a list; its positions are 0 to 1, not '4'" in message(
        small, "samples.prompts=[a]", "samples.prompts.4=b"
    )


def test_set_keeps_words_as_they_are(small: Path) -> None:
    config = load_config(small, ["samples.prompts=['1', \"a: b\"]", "samples.prompts.0=x: y #z "])
    assert config.samples.prompts == ("x: y #z ", "a: b")


@pytest.mark.parametrize("text", ["train.steps", "=3", "train..steps=3", ""])
def test_a_malformed_set_is_told_with_an_example(small: Path, text: str) -> None:
    assert "--set section.field=VALUE" in message(small, text)


def test_set_through_a_single_value_is_refused(small: Path) -> None:
    assert "train.steps is the value 10, it has no fields" in message(small, "train.steps.a=3")


# --- mistakes ---------------------------------------------------------------------------------------------------------


QUICKSTART = load_config("quickstart.yaml").model_dump(mode="json")
EVERY_KEY = [path for path, _ in leaves(QUICKSTART)]


@pytest.mark.parametrize("path", EVERY_KEY, ids=".".join)
def test_a_mistyped_key_is_refused_with_the_right_one(path: tuple[str, ...], tmp_path: Path) -> None:
    """Every key of the quick start, its last two letters swapped or one doubled."""
    key = path[-1]
    typo = key[:-2] + key[-1] + key[-2] if key[-1] != key[-2] and len(key) > 4 else key + key[-1]
    tree = copy.deepcopy(QUICKSTART)
    place = tree
    for step in path[:-1]:
        place = place[step]
    place[typo] = place.pop(key)
    told = message(write(tmp_path / "typo.yaml", json.dumps(tree, indent=1)))
    wrong, right = ".".join((*path[:-1], typo)), ".".join(path)
    assert f"{wrong} is not a field of the config; did you mean {right}?" in told
    assert "typo.yaml, line" in told


@pytest.mark.parametrize("path", EVERY_KEY, ids=".".join)
def test_a_value_of_the_wrong_type_is_told_in_one_line_with_what_is_expected(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    tree = copy.deepcopy(QUICKSTART)
    place = tree
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = [True, [True]]
    told = message(write(tmp_path / "wrong.yaml", json.dumps(tree, indent=1)))
    lines = [line for line in told.splitlines() if ".".join(path) in line]
    assert lines and ("must be" in lines[0] or "takes a list of" in lines[0]) and "not " in lines[0]
    for word in ("pydantic", "validation error", "type=", "input_value"):
        assert word not in told


def test_the_place_is_told(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", SMALL + "layout:\n  tp: two\n")
    child = write(tmp_path / "child.yaml", "extends: base.yaml\n")
    told = message(child)
    assert told == f"{tmp_path / 'base.yaml'}, line 6: layout.tp must be a whole number above 0, not 'two'"
    assert message(child, "layout.tp=0").startswith("--set layout.tp=0: layout.tp must be")


def test_all_mistakes_are_told_at_once(small: Path) -> None:
    told = message(small, "model.d_modle=3", "train.steps=-1", "layout.pp=atuo")
    assert "has 3 mistakes" in told
    assert "did you mean model.d_model?" in told and "did you mean auto?" in told and "not -1" in told


def test_a_field_in_the_wrong_section_is_found(small: Path) -> None:
    assert "did you mean model.d_model?" in message(small, "d_model=3")
    assert "did you mean optimizer.peak_lr?" in message(small, "optimizer.lr=0.1")


def test_a_missing_field_is_told_with_its_meaning(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", SMALL.replace("dir: data/small, ", ""))
    assert "data.dir is missing; give text (folder of the prepared data)" in message(file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2\n", "line 2, column 1: not readable as YAML: the key 'a' is given twice"),
        ("a: &x 1\nb: *x\n", "line 1, column 4: not readable as YAML: anchors and aliases are not accepted"),
        ("a: !!python/object/apply:os.system [echo]\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!python/name:os.system\n", "is not accepted"),
        ("a: !!timestamp 2020-01-01\n", "is not accepted"),
        ("a: [1, 2\n", "line 2"),
        ("- a\n- b\n", "a config is a mapping of keys to values, not a list"),
        ("just words\n", "a config is a mapping of keys to values, not a single value"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
        ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("a: \x07\n", "special characters are not allowed"),
    ],
)
def test_yaml_that_is_no_config_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "bad.yaml")
    assert str(caught.value).startswith("bad.yaml") and told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    started = time.monotonic()
    with pytest.raises(ConfigError, match="anchors and aliases"):
        parse_yaml(bomb, "bomb.yaml")
    assert time.monotonic() - started < 1


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the limit is"):
        load_config(write(tmp_path / "big.yaml", "#" * (1 << 20) + "\n"))


def test_a_circle_of_extends_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    assert "extends itself (a.yaml -> b.yaml -> a.yaml)" in message(tmp_path / "a.yaml")


def test_an_extended_file_that_is_missing_is_told_with_the_place(tmp_path: Path) -> None:
    told = message(write(tmp_path / "a.yaml", "\nextends: models/nope.yaml\n"))
    assert "a.yaml, line 2: extends models/nope.yaml: there is no such config file" in told
    assert "models/llama3-laptop.yaml" in told


def test_a_missing_config_lists_the_shipped_ones() -> None:
    assert "quickstart.yaml" in message(Path("nothing-here.yaml"))


def test_bytes_that_are_not_utf_8_are_told(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Gr\xfc\xdfe\n".encode("latin-1"))
    assert "not UTF-8" in message(path)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "x" * 200])
def test_a_name_that_cannot_be_a_folder_is_refused(small: Path, name: str) -> None:
    assert "name must be letters" in message(small, f'name="{name}"')


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not the folder of a run \(it has no config.yaml\)"):
        read_resolved(tmp_path)


# --- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "quickstart.yaml", "--set", "train.stesp=3"], 2),
        (["train", "quickstart.yaml", "--set", "layout.tp=3"], 2),
        (["train", "quickstart.yaml", "--nproc", "3", "--set", "layout.pp=2"], 2),
        (["prepare", "nowhere.yaml"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_command_answers_in_under_two_seconds_without_torch(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    """The time is the process's own (CPU): a busy machine must not fail this."""
    script = (
        "import sys, time\nfrom launch.cli import main\n"
        f"try:\n    code = main({arguments!r})\nexcept SystemExit as exit:\n    code = exit.code or 0\n"
        "heavy = [m for m in ('torch', 'deepspeed', 'ray', 'datasets', 'wandb') if m in sys.modules]\n"
        "print(code, heavy, time.process_time(), file=sys.stderr)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(root)}
    )
    *_, last = done.stderr.strip().splitlines()
    ended, heavy, seconds = last.split(" ", 1)[0], last.split(" ", 1)[1].rsplit(" ", 1)[0], float(last.split()[-1])
    assert (int(ended), heavy) == (code, "[]"), done.stderr
    assert seconds < (0.5 if "--help" in arguments else 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.prepare.corpora.Web={source: text}", "'Web' must be a name of small letters"),
        ("data.prepare.corpora.web={sauce: text}", "data.prepare.corpora.web.sauce is not a field"),
        ("data.prepare.corpora.web={paths: [a]}", "data.prepare.corpora.web.source is missing"),
        ("data.prepare.corpora.web=3", "data.prepare.corpora.web must be a mapping with the fields source"),
        ("data.prepare.corpora=[a]", "data.prepare.corpora must be a mapping of names to a mapping with the fields"),
    ],
)
def test_a_mapping_of_own_names_is_checked_by_name(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [override])
    assert told in str(caught.value)


def test_corpora_by_name_come_through() -> None:
    config = load_config(
        "quickstart", ["data.prepare.corpus=null", "data.prepare.corpora.web={source: text, paths: [a]}"]
    )
    assert config.data.prepare is not None
    assert list(config.data.prepare.sources) == ["web"] and config.data.prepare.kind == "text"
