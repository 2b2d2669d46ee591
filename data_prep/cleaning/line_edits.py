"""What is left of documents when some of their lines go: blank lines at the ends go too, and runs of them become one.

Lines that stay are slices of the batch's bytes, neighbours in one slice, rather than split and joined one by one. A line is
blank if it holds white space alone; one of control characters is not, though it holds no word.
"""

import numpy as np

from data_prep.cleaning.batch import Batch

_BLANK, _STAYS, _GOES = range(3)


def texts_without(batch: Batch, going: np.ndarray, documents: np.ndarray) -> list[str]:
    """Texts without some lines.

    Args:
        batch: the documents.
        going: (L,) whether a line goes.
        documents: (N,) those whose text is wanted, ascending.
    """
    document_of = np.repeat(np.arange(len(batch)), np.diff(batch.raw_line_offset))
    wanted = np.zeros(len(batch), dtype=bool)
    wanted[documents] = True
    kind = _kinds(batch, going, wanted[document_of])
    at = np.flatnonzero((kind != _GOES) & wanted[document_of])
    stays, owner = kind[at] == _STAYS, document_of[at]
    gap = ~_begins(owner)
    gap[1:] &= ~stays[:-1]  # a blank line stands before
    lines, gap, owner = at[stays], gap[stays], owner[stays]
    opens = _begins(owner)
    gap &= ~opens
    begin, end = batch.feeds[lines], batch.feeds[lines + 1]  # with the line feed before
    parts = opens.copy()
    parts[1:] |= begin[1:] - end[:-1] != gap[1:]
    run = np.flatnonzero(parts)
    run_end = end[np.append(run[1:], len(lines))[: len(run)] - 1]
    columns = ((begin + opens)[run].tolist(), run_end.tolist(), gap[run].tolist())
    joined = batch.joined
    pieces = [
        b"\n" + joined[start:stop] if wide else joined[start:stop] for start, stop, wide in zip(*columns, strict=True)
    ]
    borders = (np.searchsorted(owner[run], documents, side=side).tolist() for side in ("left", "right"))
    return [b"".join(pieces[first:last]).decode("utf-8", "surrogatepass") for first, last in zip(*borders, strict=True)]


def _kinds(batch: Batch, going: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(R,) what each raw line is; right where `wanted` (R,)."""
    kind = np.full(len(batch.feeds) - 1, _BLANK, dtype=np.uint8)
    kind[batch.raw_line] = np.where(going, _GOES, _STAYS)
    unclear = np.flatnonzero((kind == _BLANK) & wanted & (np.diff(batch.feeds) > 1))
    for line in unclear.tolist():
        if not batch.raw_line_text(line).isspace():
            kind[line] = _STAYS
    return kind


def _begins(values: np.ndarray) -> np.ndarray:
    """(N,) whether a value is not that before it."""
    found = np.ones(len(values), dtype=bool)
    found[1:] = values[1:] != values[:-1]
    return found
