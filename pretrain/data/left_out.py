"""Why a source has less than was read of it: what preparation left out, by step, for messages."""

from collections.abc import Mapping
from typing import Any

from pretrain.data.manifest import Manifest

TOLD_STEPS = 4
"""Of the steps that took most."""
_COUNTS = {
    "duplicates": "equal to an earlier document (data.prepare.dedup)",
    "near_duplicates": "much like an earlier document (data.prepare.dedup)",
    "bad_documents": "not readable (quarantine.jsonl)",
}


def left_out(manifest: Manifest, source: str | None = None) -> str | None:
    """A sentence on what went of a source (None: of all) and what to do; None where nothing did, or nobody counted."""
    corpus: Mapping[str, Any] = manifest.corpus
    counted = corpus if source is None or len(manifest.sources) == 1 else corpus.get("sources", {}).get(source, {})
    went = {cause: counted.get(name, 0) for name, cause in _COUNTS.items()}
    went |= {f"dropped as {reason}": count for reason, count in counted.get("dropped", {}).items()}
    most = sorted(((count, cause) for cause, count in went.items() if count), key=lambda each: (-each[0], each[1]))
    if not most:
        return None
    read = counted.get("documents", 0) + counted.get("bad_documents", 0)
    told = ", ".join(f"{count:,} {cause}" for count, cause in most[:TOLD_STEPS])
    rest = sum(count for count, _ in most[TOLD_STEPS:])
    return (
        f"of its {read:,} documents, preparation left out {told}{f', {rest:,} for other reasons' if rest else ''}; "
        "loosen or switch off the step that took most, name corpora that do not repeat each other, or give it more documents "
        "(cleaning.html of the folder shows what went)"
    )
