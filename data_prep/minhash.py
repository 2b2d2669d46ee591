"""Signatures of texts: what of their sets of shingles is kept to find near-duplicates.

MinHash (Broder 1997, "On the resemblance and containment of documents"): the share of equal slots of two signatures estimates
the Jaccard similarity of the two sets. The slots are those of R-MinHash of `rensa`, in Rust: Fast Similarity Sketching
(Dahlgaard, Knudsen, Thorup 2017), one hash a shingle instead of 128, with the same estimate. Alternatives: `datasketch` (6 to 8
MB per CPU-second); 128 multiplications a shingle in numpy (10); its own rho sketch, which samples and depends on word order.

Costs: 4 bytes a slot and document. `rensa` starts threads unless told otherwise, which costs CPU for nothing in a worker
process and makes a later fork unsafe: it is told to use one.
"""

import functools
import os
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

from data_prep import shingles
from pretrain.data.dedup_settings import DedupSettings
from pretrain.errors import ConfigError

SEED = 42
"""Of the slots; signatures of different seeds cannot be compared."""
SIGNATURE_VERSION = f"{shingles.VERSION}-rminhash{RMinHash.ALGORITHM_VERSION}-{SEED}"
"""Changes with whatever changes a signature; part of the key under which one is kept."""
EMPTY = np.uint32(0xFFFFFFFF)
"""Every slot of a text without words."""
_THREADS = "RAYON_NUM_THREADS"


def signatures(texts: Sequence[str], settings: DedupSettings) -> np.ndarray:
    """(N, P) uint32: the signature of each text; a pure function of the text, whatever it is batched with.

    Raises:
        ConfigError: bands that need more slots than there are.
    """
    check_bands(settings)
    found = np.empty((len(texts), settings.permutations), dtype=np.uint32)
    for batch in shingles.batches(texts):
        flat, offsets = shingles.flat_shingles(texts[batch], settings.shingle_words)
        _use_one_thread()
        found[batch] = RMinHash.digest_matrix_from_flat_token_hashes(
            flat, offsets, settings.permutations, SEED
        ).to_rows()
    return found


def check_bands(settings: DedupSettings) -> None:
    """Raises ConfigError where the bands need more slots than a signature has."""
    if settings.slots_in_bands > settings.permutations:
        raise ConfigError(
            f"dedup.bands={settings.bands} x dedup.rows_per_band={settings.rows_per_band} need {settings.slots_in_bands} slots, "
            f"but dedup.permutations={settings.permutations}: at most {settings.permutations // settings.rows_per_band} bands fit"
        )


@functools.cache
def _use_one_thread() -> None:
    """The library reads the number of its threads from the environment, once, when it first works."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        RMinHash.digest_matrix_from_flat_token_hashes(
            np.arange(4096, dtype=np.uint64), np.arange(0, 4097, 64, dtype=np.uint64), 128, SEED
        ).to_rows()
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
