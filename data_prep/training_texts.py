"""Which texts a tokenizer is trained on, and the training."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_prep.dedup import TRAIN
from data_prep.fates import Survey, scans
from data_prep.ledger import Ledger
from data_prep.progress import Phases
from data_prep.shard import texts_of
from data_prep.tokenize import read_tokenizer, train_tokenizer
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.tokenizer_settings import ENGINE_CHOICE
from pretrain.files import hash_bytes, hash_file, write_atomically


def trained_tokenizer(
    path: Path, survey: Survey, prepare: PrepareSettings, ledger: Ledger, phases: Phases
) -> Tokenizer:
    """The tokenizer of a corpus: the one at `path` where it was trained on the same documents, else a new one.

    Raises DataError, StorageError.
    """
    settings = prepare.tokenizer.model_dump(mode="json", exclude=ENGINE_CHOICE)
    key = hash_bytes(json.dumps(["tokenizer", survey.hash, settings], sort_keys=True).encode())
    known = ledger.find(key)
    if known is None or not path.exists() or hash_file(path) != known.values["hash"]:
        with phases.phase("training the tokenizer", None):
            content = train_tokenizer(_texts(survey, prepare, ledger), prepare.tokenizer).to_str(pretty=True)
        write_atomically(path, content)
        ledger.keep(key, {"hash": hash_file(path)})
    return read_tokenizer(path)


def _texts(survey: Survey, prepare: PrepareSettings, ledger: Ledger) -> Iterator[str]:
    """About `training_bytes` of training documents, drawn by their hash; of a very large corpus from every k-th range."""
    total = 0
    for place, (_, scan) in enumerate(scans(survey.tasks, ledger)):
        total += int(scan.sizes[survey.judged(place).fates[scan.passed] == TRAIN].sum())
    share = prepare.tokenizer.training_bytes / max(total, 1)
    # Documents are spread over all ranges; reading a tenth of the ranges for a hundredth of the text is even enough.
    stride = min(max(int(0.1 / share), 1), len(survey.tasks))
    limit = np.uint64(min(int(share * stride * 2**64), 2**64 - 1))
    chosen = range(0, len(survey.tasks), stride)
    for place, (task, scan) in zip(chosen, scans((survey.tasks[at] for at in chosen), ledger), strict=True):
        wanted = survey.judged(place).fates == TRAIN
        wanted[scan.passed] &= scan.keys[:, 0]["low"] <= limit
        yield from texts_of(task, wanted)
