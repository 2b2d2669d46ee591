"""`pretrain evaluate`: what a run's last checkpoint is worth on the validation set, in one process.

Losses are those of the training run's own validation, up to rounding: the same rows, the same weights, in fp32 on a CPU. Beside
them stand what they must be compared with: the uniform distribution, a bigram model of the tokens that the model saw, and for a
translation the same model with the sources shuffled, and copying the source.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pretrain.data.bigram import bigram_baseline
from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.data.token_shards import read_manifest, read_token_bytes
from pretrain.data.validation import validation_batches
from pretrain.decoding import Sampling
from pretrain.engine.protocol import EvaluationResult
from pretrain.files import read_json_lines
from pretrain.metrics.chrf import chrf
from pretrain.metrics.evaluation import Evaluation, evaluation_of, write_evaluation
from pretrain.metrics.jsonl import EVENTS_FILE
from pretrain.metrics.step_values import FIRST_POSITIONS
from pretrain.pairs import Pair, held_out_pairs, pair_batches, shuffled_sources, translate
from pretrain.parallel.cross_entropy import vocabulary_parallel_cross_entropy
from pretrain.parallel.mesh import ProcessMesh
from pretrain.trained import TrainedModel, load_trained

MAX_BASELINE_TARGETS = 50_000_000
"""Targets up to which the bigram model is fitted: it holds every pair of the training tokens in memory."""


def evaluate(run_dir: Path, console: Console | None = None) -> Evaluation:
    """Evaluates a run's newest whole checkpoint, keeps the result as evaluation.json, and prints it.

    Raises:
        ConfigError: the folder is not that of a run.
        CheckpointError: there is no whole checkpoint of this model.
        DataError: the validation set or the tokenizer is missing or damaged.
        StorageError: the result cannot be written.
    """
    out = console or Console()
    trained = load_trained(run_dir, lambda message: out.print(Text(message)))
    evaluation = evaluate_losses(trained)
    evaluation = evaluation.with_values(_baseline(trained, run_dir))
    if trained.config.model.architecture == "encoder_decoder":
        evaluation = evaluation.with_values(evaluate_pairs(trained))
    path = write_evaluation(run_dir, evaluation)
    out.print(evaluation_table(trained.config.name, evaluation))
    out.print(Text(f" kept in {path}"), soft_wrap=True)
    return evaluation


def evaluate_losses(trained: TrainedModel) -> Evaluation:
    """Losses on the validation rows that the run itself uses."""
    config = trained.config
    batches = validation_batches(
        config.data,
        sequences=config.evaluation.sequences,
        micro_batch_sequences=config.train.micro_batch_sequences,
        data_rank=0,
        data_size=1,
    )
    lengths = torch.from_numpy(read_token_bytes(config.data.folder, read_manifest(config.data.folder)).astype("int64"))
    labels = torch.cat([batch.labels[batch.labels != IGNORED] for batch in batches])
    return evaluation_of(
        sum_losses(trained, batches),
        step=trained.step,
        vocab_size=trained.tokenizer.vocab_size,
        target_bytes=int(lengths[labels].sum()),
    )


@torch.inference_mode()
def sum_losses(trained: TrainedModel, batches: Iterable[MicroBatch]) -> EvaluationResult:
    """Summed losses by position; rows may be of different widths."""
    width = trained.config.data.sequence_length
    sums, counts = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.int64)
    for losses, valid in _token_losses(trained, batches):
        sums[: losses.shape[1]] += losses.double().sum(0)
        counts[: losses.shape[1]] += valid.sum(0)
    return EvaluationResult(sums, counts)


def _token_losses(trained: TrainedModel, batches: Iterable[MicroBatch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(B, S) losses, 0 where there is no label, and (B, S) whether there is one."""
    axis, device = ProcessMesh.single().model, next(trained.stack.parameters()).device
    for batch in batches:
        labels = batch.labels.to(device)
        logits = trained.stack({name: tensor.to(device) for name, tensor in batch.inputs.items()})
        losses = vocabulary_parallel_cross_entropy(logits, labels, axis, trained.tokenizer.vocab_size)
        yield losses.cross_entropy.cpu(), batch.labels != IGNORED


def evaluate_pairs(trained: TrainedModel) -> dict[str, float]:
    """Whether the decoder reads the source, and how good its translations are, on held-out pairs."""
    config = trained.config
    pairs = held_out_pairs(config.data, config.evaluation.translations)
    mixed = shuffled_sources(pairs, config.run.seed)
    values = {
        "eval/pair_loss": sum_losses(trained, pair_batches(pairs, trained)).loss,
        "eval/shuffled_source_loss": sum_losses(trained, pair_batches(mixed, trained)).loss,
    }
    return {**values, **_chrf_values(trained, pairs)}


def _chrf_values(trained: TrainedModel, pairs: list[Pair]) -> dict[str, float]:
    decode, beam_size = trained.tokenizer.decode, trained.config.evaluation.beam_size
    references = [decode(pair.target) for pair in pairs]
    sources = [pair.source for pair in pairs]
    greedy = Sampling(temperature=0.0, top_p=1.0, seed=0)
    values = {
        "eval/chrf_copy": chrf([decode(source) for source in sources], references),
        "eval/chrf_greedy": chrf(translate(trained, sources, beam_size=0, sampling=greedy), references),
    }
    if beam_size > 0:
        values["eval/chrf_beam"] = chrf(translate(trained, sources, beam_size=beam_size, sampling=greedy), references)
    return values


def _baseline(trained: TrainedModel, run_dir: Path) -> dict[str, float]:
    """Validation loss of the bigram model: what the run noted at its end, else computed."""
    config = trained.config
    if config.evaluation.baseline != "bigram" or trained.targets > MAX_BASELINE_TARGETS:
        return {}
    for event in reversed(read_json_lines(run_dir / EVENTS_FILE)):
        summary = event.get("summary") or {}
        if event.get("kind") == "finish" and summary.get("steps") == trained.step and "eval/bigram_loss" in summary:
            return {"eval/bigram_loss": float(summary["eval/bigram_loss"])}
    loss = bigram_baseline(
        config.data,
        seed=config.run.seed,
        global_batch_sequences=config.global_batch_sequences,
        steps=trained.step,
        sequences=config.evaluation.sequences,
    )
    return {"eval/bigram_loss": loss}


def evaluation_table(name: str, evaluation: Evaluation) -> Group:
    """The numbers, with what they are to be compared with."""
    table = Table.grid(padding=(0, 2))
    for label, told, note in _told(evaluation.values):
        table.add_row("", label, Text(told, style="bold"), note)
    return Group(Text(f" {name}, step {evaluation.step:,}", style="bold"), table)


def _told(values: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Rows of label, number and note."""
    loss = values["eval/loss"]
    note = f"perplexity {values['eval/perplexity']:,.1f}, {values['eval/targets']:,.0f} targets"
    yield "validation loss", f"{loss:.4f}", note
    note = f"nats; ln(vocabulary) is {values['eval/uniform_loss']:.4f}"
    yield "below uniform", f"{values['eval/nats_below_uniform']:.4f}", note
    if "eval/bits_per_byte" in values:
        yield "bits per byte", f"{values['eval/bits_per_byte']:.4f}", ""
    first, late = values[f"eval/loss_first_{FIRST_POSITIONS}"], values["eval/loss_past_middle"]
    if math.isfinite(first) and math.isfinite(late):
        yield "past the middle", f"{late:.4f}", f"against {first:.4f} at the first {FIRST_POSITIONS} positions"
    if "eval/bigram_loss" in values:
        bigram = values["eval/bigram_loss"]
        note = f"the model is {abs(bigram - loss):.4f} nats {'below' if loss <= bigram else 'above'} it"
        yield "bigram baseline", f"{bigram:.4f}", note
    if "eval/shuffled_source_loss" in values:
        own, mixed = values["eval/pair_loss"], values["eval/shuffled_source_loss"]
        yield "sources shuffled", f"{mixed:.4f}", f"{mixed - own:+.4f} nats against their own"
    if "eval/chrf_greedy" in values:
        beam = f"beam search {values['eval/chrf_beam']:.1f}, " if "eval/chrf_beam" in values else ""
        yield (
            "chrF",
            f"{values['eval/chrf_greedy']:.1f}",
            f"greedy; {beam}copying the source {values['eval/chrf_copy']:.1f}",
        )
