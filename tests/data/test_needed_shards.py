"""What an agent fetches ahead is what the ranks read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.needed_shards import NeededShards
from pretrain.data.token_shards import TokenShards
from tests.data.folders import text_documents, write_folder
from tests.data.plans import plan_of, virtual_manifest


@pytest.mark.parametrize("order", [{}, {"method": "eras", "era_tokens": 200}], ids=["shuffle", "eras"])
def test_the_shards_of_a_step_are_those_that_its_windows_open(tmp_path: Path, order: dict[str, Any]) -> None:
    manifest = write_folder(tmp_path, text_documents(60, 1), text_documents(2, 2), shard_documents=1)
    plan, files = plan_of(manifest, **order), [shard.file for shard in manifest.splits["train"].shards]
    needed = NeededShards(plan, manifest)
    for step in range(30):
        shards = TokenShards.open(tmp_path, "train")
        _, _, windows = plan.samples(step * 4, 4)
        for _ in shards.read_windows(windows * 16, 17):
            pass
        assert set(needed.files(step * 4, 4)) == {files[index] for index in shards._open}


def test_eras_need_few_shards_at_a_time() -> None:
    manifest = virtual_manifest({"web": [10_000] * 500})
    spread = {"shuffle": {}, "eras": {"method": "eras", "era_tokens": 100_000}}
    counts = {
        name: len(NeededShards(plan_of(manifest, **order), manifest).files(0, 2000)) for name, order in spread.items()
    }
    assert counts["shuffle"] > 400 and counts["eras"] <= 11


def test_sources_are_told_apart() -> None:
    manifest = virtual_manifest({"a": [100] * 20, "b": [300] * 20})
    needed = NeededShards(plan_of(manifest, weights={"a": 0.0, "b": 1.0}), manifest)
    assert all("train/b-" in file for file in needed.files(0, 64)) and len(needed.files(0, 64)) > 10


def test_a_growing_folder_needs_nothing_that_is_not_certain_yet() -> None:
    grown = virtual_manifest({"web": [10_000] * 5}, complete=False)
    needed = NeededShards(plan_of(grown, method="eras", era_tokens=16_000), grown)
    assert needed.files(0, 3000) and needed.files(3000, 1000) == ()
    np.testing.assert_equal(len(needed.files(0, 1000)), 2)
