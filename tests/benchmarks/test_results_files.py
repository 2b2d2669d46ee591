"""What results files say of the machine that they were made on."""

import re
from pathlib import Path

import pytest

from benchmarks.processor import public_command, public_text

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
FROM_ROOT = re.compile(r"(?<![\w.:/])/[\w.+@~-]+/")


def test_a_command_names_folders_by_their_last_part() -> None:
    words = ["--work", "/a/b.c/bench", "--out=/x/y", "--corpus", "docs/here", "--megabytes", "10"]
    expected = "python -m benchmarks.x --work bench --out=y --corpus docs/here --megabytes 10"
    assert public_command("python -m benchmarks.x", words) == expected
    assert public_text("/a/lib/python3/torch/x.py:83: warning\nsee '/tmp/run-1/logs', 3/4 done") == (
        "x.py:83: warning\nsee 'logs', 3/4 done"
    )


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_no_results_file_names_a_path_of_its_machine(path: Path) -> None:
    assert FROM_ROOT.findall(path.read_text()) == []
