from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.data_contest import check_equal, summary
from benchmarks.data_contestants import READERS, TOKENIZERS, Failed, Goal, parse_report, present
from benchmarks.data_mix import build_mix
from benchmarks.peers.tree_clock import tree_cpu_s

QUIET = Console(quiet=True)


def test_a_report_is_the_last_line_whatever_a_library_prints_before_it():
    assert parse_report("x", 'loading ...\n{"tokens": 1}\n\n{"tokens": 2}\n') == {"tokens": 2}


@pytest.mark.parametrize("output", ["", "done\n", '{"tokens": 1}\nbye\n', "3\n"])
def test_an_output_without_a_report_is_refused_by_the_name_of_its_contestant(output: str):
    with pytest.raises(Failed, match="litdata"):
        parse_report("litdata", output)


def test_unequal_work_is_refused_with_the_counts_of_each():
    check_equal({"a": (10, 2), "b": (10, 2)})
    with pytest.raises(RuntimeError, match="a: 10 of 2; b: 9 of 2"):
        check_equal({"a": (10, 2), "b": (9, 2)})


def test_ratios_are_of_rates_within_a_round():
    def rows(*seconds: float) -> list[dict[str, float]]:
        return [{"work_cpu_s": each, "command_cpu_s": each + 1} for each in seconds]

    rounds = {"ours": rows(1, 10, 2), "peer": rows(4, 40, 8)}  # the second round was slow for both
    found = summary(
        rounds, [Goal("ours", "peer", 3), Goal("ours", "absent", 1)], {"ours": [8.0] * 3, "peer": [8.0] * 3}
    )
    assert found["contestants"]["ours"]["per_cpu_s"] == 4.0
    assert found["comparisons"].keys() == {"ours / peer"}
    comparison = found["comparisons"]["ours / peer"]
    assert comparison["times"] == 4.0 and comparison["reached"]
    assert comparison["times_whole_command"] == 3.0


def test_contestants_without_their_environment_are_left_out(tmp_path: Path):
    names = {contestant.name for contestant in present([*TOKENIZERS, *READERS], tmp_path, QUIET)}
    assert {"ray", "pool", "batches", "torch-0"} <= names
    assert not names & {"datatrove", "megatron", "mosaic", "litdata"}


def test_a_source_that_cannot_be_fetched_is_told_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = build_mix(tmp_path / "corpus", 0.1, ("standard_library", "anarchism"), QUIET)
    assert found["left_out"] == ["anarchism"] and found["bytes"] > 90_000
    assert build_mix(tmp_path / "again", 0.1, ("standard_library",), QUIET)["hash"] == found["hash"]


def test_the_clock_counts_this_process():
    before = tree_cpu_s()
    sum(i * i for i in range(2_000_000))
    assert tree_cpu_s() > before
