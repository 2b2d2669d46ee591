"""Records come back as they were kept; a damaged one counts as missing."""

from pathlib import Path

import numpy as np

from data_prep.ledger import Ledger
from pretrain.errors import DataError

KEY = "ab" * 16


def test_a_record_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.keep(KEY, {"name": "\u00e4", "count": 1 << 60}, keys=np.arange(5, dtype="<u8"), empty=np.empty((0, 3), "u4"))
    record = ledger.find(KEY)
    assert record is not None and record.values == {"name": "\u00e4", "count": 1 << 60}
    assert record.arrays["keys"].tolist() == [0, 1, 2, 3, 4] and record.arrays["empty"].shape == (0, 3)


def test_a_damaged_record_counts_as_missing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.find(KEY) is None
    ledger.keep(KEY, {"a": 1}, keys=np.arange(500, dtype="<u8"))
    path = next(tmp_path.rglob("*.npz"))
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert ledger.find(KEY) is None
    found = 0
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        record = ledger.find(KEY)
        if record is None:
            continue
        try:
            assert record.values == {"a": 1} and record.arrays["keys"].tolist() == list(range(500))
        except DataError as error:
            assert "run `pretrain prepare` again" in str(error) and not path.exists()
            found += 1
    assert found > 20


def test_no_flipped_bit_of_a_record_is_told_as_anything_but_damage(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.keep(KEY, {"a": 1}, keys=np.arange(3, dtype="<u8"))
    path = next(tmp_path.rglob("*.npz"))
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        record = ledger.find(KEY)
        try:
            assert record is None or "keys" not in record.arrays or record.arrays["keys"].tolist() == [0, 1, 2]
        except DataError:
            assert not path.exists()
