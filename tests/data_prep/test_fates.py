"""What the driver asks to be read again is what it means."""

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup import KEY
from data_prep.fates import _Passed
from data_prep.ledger import Ledger


def test_rows_are_found_behind_documents_that_did_not_pass(tmp_path: Path) -> None:
    passed = np.array([False, True, True, False, False, True, True])
    tasks: Any = ["a", "b"]
    keys = np.empty((4, 1), KEY)
    found = _Passed(tasks, np.array([0, 2, 4]), np.array([0, 3, 7]), passed, keys, Ledger(tmp_path))
    asked = [(task.scan, task.wanted.tolist()) for task in found.texts(np.array([1, 2, 3]))]
    assert asked == [("a", [False, False, True]), ("b", [False, False, True, True])]
