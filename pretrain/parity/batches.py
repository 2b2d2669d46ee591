"""Seeded random batches with everything that makes layouts disagree: documents, padding, unequal targets.

Windows hold several documents and padding; targets are so unequally spread over micro-batches that any mean of means is far
from the mean; at one step the last micro-batch is padding alone.
"""

import random
from dataclasses import dataclass

import torch

from pretrain.config import RunConfig
from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.parity.reference import Batch

_TARGET_SHARES = (1.0, 0.35, 0.8, 0.1)
"""Share of labels kept in each micro-batch of a step, in turns."""
_PADDED_STEP = 3
"""The step whose last micro-batch only fills up, as at a data set's end."""


@dataclass(frozen=True)
class BatchMaker:
    """The global batches of a run, each a pure function of the step."""

    sequences: int
    micro_sequences: int
    length: int
    vocabulary: int
    source_length: int | None = None
    """Of an encoder-decoder's sources; None for a decoder."""

    @staticmethod
    def of(config: RunConfig) -> "BatchMaker":
        """Those that fit a config."""
        assert config.model.vocab_size is not None
        return BatchMaker(
            config.global_batch_sequences,
            config.train.micro_batch_sequences,
            config.data.sequence_length,
            config.model.vocab_size,
            config.data.source_length if config.data.objective == "seq2seq" else None,
        )

    def global_batch(self, step: int) -> Batch:
        """All sequences of a step (counted from 0): the model's inputs, and `labels`."""
        paired = self.source_length is not None
        rng = random.Random(f"{paired} {step}")
        rows = [self._pair_row(rng, row) if paired else self._text_row(rng, row) for row in range(self.sequences)]
        batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        batch["sample"] = torch.arange(step * self.sequences, (step + 1) * self.sequences)
        for micro in range(self.sequences // self.micro_sequences):
            part = slice(micro * self.micro_sequences, (micro + 1) * self.micro_sequences)
            share, size = _TARGET_SHARES[micro % len(_TARGET_SHARES)], range(self.length)
            ignored = torch.tensor([[rng.random() >= share for _ in size] for _ in range(self.micro_sequences)])
            batch["labels"][part].masked_fill_(ignored, IGNORED)
        if step == _PADDED_STEP and self.sequences > self.micro_sequences:
            last = slice(self.sequences - self.micro_sequences, None)
            batch["labels"][last], batch["documents"][last] = IGNORED, -1
            if paired:
                batch["source_documents"][last] = -1
        return batch

    def micro_batches(self, dp: int, step: int, rank: int) -> list[MicroBatch]:
        """A rank's part of the step: a contiguous slice of its micro-batches. `rank` is its coordinate among `dp`."""
        batch = dict(self.global_batch(step))
        labels = batch.pop("labels")
        share = self.sequences // dp
        starts = range(rank * share, (rank + 1) * share, self.micro_sequences)
        parts = [slice(start, start + self.micro_sequences) for start in starts]
        return [MicroBatch({name: field[part] for name, field in batch.items()}, labels[part]) for part in parts]

    def _text_row(self, rng: random.Random, row: int) -> dict[str, list[int]]:
        """A window of one to four documents; every third ends in padding."""
        whole = self.length
        length = max(1, whole - rng.randint(2, 5)) if row % 3 == 2 else whole
        ends = sorted({*rng.sample(range(1, length), min(row % 4, length - 1)), length})
        tokens = [rng.randrange(self.vocabulary) for _ in range(whole)]
        documents, positions, labels = [-1] * whole, [0] * whole, [IGNORED] * whole
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            for i in range(start, end):
                documents[i], positions[i] = number, i - start
                labels[i] = tokens[i + 1] if i + 1 < end else IGNORED
        if length == whole:
            labels[-1] = rng.randrange(self.vocabulary)  # the last document goes on in the next window
        return {"tokens": tokens, "documents": documents, "positions": positions, "labels": labels}

    def _pair_row(self, rng: random.Random, row: int) -> dict[str, list[int]]:
        """One or two pairs, sources and targets with padding behind them."""
        assert self.source_length is not None
        fields = ("source_tokens", "source_documents", "tokens", "documents", "positions", "labels")
        result: dict[str, list[int]] = {name: [] for name in fields}
        pairs = 1 + row % 2 if min(self.length, self.source_length) >= 4 else 1
        for number in range(pairs):
            source = rng.randint(2, self.source_length // pairs)
            target = rng.randint(2, self.length // pairs)
            result["source_documents"] += [number] * source
            result["documents"] += [number] * target
            result["positions"] += range(target)
            result["labels"] += [rng.randrange(self.vocabulary) for _ in range(target)]
        for name, values in result.items():
            length = self.source_length if name.startswith("source") else self.length
            filler = {"labels": IGNORED, "positions": 0}.get(name, -1)
            values += [filler] * (length - len(values))
        result["source_tokens"] = [rng.randrange(self.vocabulary) for _ in range(self.source_length)]
        result["tokens"] = [rng.randrange(self.vocabulary) for _ in range(self.length)]
        return result
