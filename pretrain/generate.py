"""`pretrain generate`: text from a run's last checkpoint. A decoder continues prompts, an encoder-decoder translates them.

What is written is repeatable: each prompt draws from a stream of its own, keyed by the seed and its number. Every sample is
kept in the run's samples.jsonl, from where the report takes the newest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from pretrain.config import RunConfig, read_resolved
from pretrain.decoding import Sampling, StagedModel, continue_rows
from pretrain.errors import ConfigError
from pretrain.files import append_json_line
from pretrain.metrics.jsonl import SAMPLES_FILE
from pretrain.pairs import held_out_pairs, translate, vocabulary_of
from pretrain.trained import TrainedModel, load_trained

HELD_OUT_SAMPLES = 4
"""Held-out pairs that are shown beside the prompts of a translation run."""

Emit = Callable[[str], None]

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters to their pictures: a model may write what would steer the reader's terminal."""


@dataclass(frozen=True)
class GenerationSettings:
    """How text is made."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    beam_size: int
    """Of a translation; 0: token by token."""

    @property
    def sampling(self) -> Sampling:
        """The part that chooses single tokens."""
        return Sampling(self.temperature, self.top_p, self.seed)

    def told(self) -> dict[str, Any]:
        """What had an effect, as samples.jsonl keeps it."""
        if self.beam_size > 0:
            return {"beam_size": self.beam_size, "max_tokens": self.max_tokens}
        if self.temperature == 0:
            return {"temperature": 0.0, "max_tokens": self.max_tokens}
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True)
class Sample:
    """One text that a model wrote."""

    step: int
    """Of the model."""
    kind: str
    """`continuation` or `translation`."""
    prompt: str
    text: str
    """What follows the prompt, or its translation."""
    settings: dict[str, Any]
    reference: str | None = None
    """The right translation, where it is known."""

    def row(self) -> dict[str, Any]:
        """The object that samples.jsonl keeps."""
        row = {
            "step": self.step,
            "kind": self.kind,
            "prompt": self.prompt,
            "text": self.text,
            "settings": self.settings,
        }
        return row if self.reference is None else {**row, "reference": self.reference}


def generate(
    run_dir: Path,
    prompts: Sequence[str] = (),
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    beam_size: int | None = None,
    seed: int | None = None,
    console: Console | None = None,
) -> list[Sample]:
    """Continues or translates prompts, prints and keeps the texts. What is None is taken from the run's config.

    Raises:
        ConfigError: the folder is not that of a run; a prompt is empty or too long; a setting is out of its range.
        CheckpointError: there is no whole checkpoint of this model.
        DataError: the tokenizer is missing or damaged.
        StorageError: samples.jsonl cannot be written.
    """
    config = read_resolved(run_dir)
    settings = choose_settings(config, max_tokens, temperature, top_p, beam_size, seed)
    wanted = tuple(prompts) or config.samples.prompts
    check_prompts(wanted)
    out = console or Console()
    trained = load_trained(run_dir, lambda message: out.print(Text(message)))
    return _make(run_dir, trained, wanted, settings, out)


def write_samples(run_dir: Path, console: Console | None = None) -> list[Sample]:
    """The samples at the end of a run: the config's prompts, and for a translation run some held-out pairs as well.

    Raises as `generate` does; a run whose config has no prompts makes none.
    """
    config = read_resolved(run_dir)
    settings = choose_settings(config, None, None, None, None, None)
    translates = config.model.architecture == "encoder_decoder"
    if not config.samples.prompts and not translates:
        return []
    out = console or Console()
    trained = load_trained(run_dir, lambda message: out.print(Text(message)))
    made = _make(run_dir, trained, config.samples.prompts, settings, out) if config.samples.prompts else []
    return made + (_translate_held_out(run_dir, trained, settings, out) if translates else [])


def choose_settings(
    config: RunConfig,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    beam_size: int | None,
    seed: int | None,
) -> GenerationSettings:
    """Settings with the config's values filled in. Raises ConfigError for one that is out of its range."""
    known = config.samples
    translates = config.model.architecture == "encoder_decoder"
    if beam_size and not translates:
        raise ConfigError(
            f"beam size {beam_size}: a beam search is for translations, and this run's model is a decoder"
        )
    # Whoever asks for a temperature on the command line asks for sampling.
    default_beam = config.evaluation.beam_size if translates and temperature is None else 0
    chosen = GenerationSettings(
        max_tokens=known.max_tokens if max_tokens is None else max_tokens,
        temperature=known.temperature if temperature is None else temperature,
        top_p=known.top_p if top_p is None else top_p,
        seed=config.run.seed if seed is None else seed,
        beam_size=default_beam if beam_size is None else beam_size,
    )
    for name, value, allowed, rule in (
        ("max_tokens", chosen.max_tokens, chosen.max_tokens >= 1, "at least 1"),
        ("temperature", chosen.temperature, 0 <= chosen.temperature < float("inf"), "0 (greedy) or more"),
        ("top_p", chosen.top_p, 0 < chosen.top_p <= 1, "over 0 and at most 1 (everything)"),
        ("beam size", chosen.beam_size, chosen.beam_size >= 0, "0 (greedy) or more"),
    ):
        if not allowed:
            raise ConfigError(f"{name} must be {rule}, not {value}")
    return chosen


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises ConfigError where there is no prompt, or one is empty."""
    if not prompts:
        raise ConfigError("there is nothing to continue: give --prompt TEXT, or set samples.prompts in the config")
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise ConfigError(f"prompt {number} is empty; give at least one character")


def _make(
    run_dir: Path, trained: TrainedModel, prompts: Sequence[str], settings: GenerationSettings, console: Console
) -> list[Sample]:
    translates = trained.config.model.architecture == "encoder_decoder"
    ids = _encode(trained, prompts)
    if translates:
        texts = translate(
            trained, ids, beam_size=settings.beam_size, sampling=settings.sampling, max_tokens=settings.max_tokens
        )
        kind = "translation"
    else:
        emit = _stream_to(console) if len(prompts) == 1 and not console.quiet else None
        texts = _continue(trained, ids, prompts, settings, emit)
        kind = "continuation"
    samples = [
        Sample(trained.step, kind, prompt, text, settings.told()) for prompt, text in zip(prompts, texts, strict=True)
    ]
    if translates or len(prompts) > 1:
        _print(console, samples)
    _keep(run_dir, samples)
    return samples


def _encode(trained: TrainedModel, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of the prompts. Raises ConfigError for one that leaves the model no room."""
    data = trained.config.data
    limit = data.sequence_length - 1
    what = "data.sequence_length, less one for what follows"
    if trained.config.model.architecture == "encoder_decoder":
        limit, what = data.source_length or data.sequence_length, "data.source_length"
    found = []
    for number, prompt in enumerate(prompts, 1):
        ids = trained.tokenizer.encode(prompt)
        if len(ids) > limit:
            raise ConfigError(
                f"prompt {number} has {len(ids)} tokens, and the model was trained on at most {limit} ({what}); shorten it"
            )
        found.append(ids)
    return found


def _continue(
    trained: TrainedModel,
    ids: Sequence[Sequence[int]],
    prompts: Sequence[str],
    settings: GenerationSettings,
    emit: Emit | None,
) -> list[str]:
    """What follows each prompt. A single one is emitted while it grows."""
    limits = [min(settings.max_tokens, trained.config.data.sequence_length - len(row)) for row in ids]
    stream = None
    if emit is not None:
        emit(prompts[0])
        stream = TextStream(trained.tokenizer.decode, emit)
    rows = continue_rows(
        StagedModel(trained.stack),
        ids,
        limits,
        settings.sampling,
        vocabulary_of(trained),
        on_token=None if stream is None else lambda _, token: stream.add(token),
    )
    if stream is not None and emit is not None:
        stream.end()
        emit("\n")
    return [trained.tokenizer.decode(row) for row in rows]


class TextStream:
    """Tells text as tokens arrive, held back while the last character is not whole: a token may end within one."""

    def __init__(self, decode: Callable[[Sequence[int]], str], emit: Emit) -> None:
        self._decode, self._emit = decode, emit
        self._tokens: list[int] = []
        self._told = 0

    def add(self, token: int) -> None:
        """Takes the next token."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._tell(text)

    def end(self) -> None:
        """Tells what was held back."""
        self._tell(self._decode(self._tokens))

    def _tell(self, text: str) -> None:
        self._emit(text[self._told :])
        self._told = len(text)


def _translate_held_out(
    run_dir: Path, trained: TrainedModel, settings: GenerationSettings, console: Console
) -> list[Sample]:
    decode = trained.tokenizer.decode
    pairs = held_out_pairs(trained.config.data, HELD_OUT_SAMPLES)
    texts = translate(
        trained,
        [pair.source for pair in pairs],
        beam_size=settings.beam_size,
        sampling=settings.sampling,
        max_tokens=settings.max_tokens,
    )
    samples = [
        Sample(trained.step, "translation", decode(pair.source), text, settings.told(), decode(pair.target))
        for pair, text in zip(pairs, texts, strict=True)
    ]
    _print(console, samples)
    _keep(run_dir, samples)
    return samples


def _print(console: Console, samples: Sequence[Sample]) -> None:
    for sample in samples:
        console.print(Rule(style="dim"))
        if sample.kind == "translation":
            for label, text in (("source", sample.prompt), ("model", sample.text), ("reference", sample.reference)):
                if text is not None:
                    console.print(Text.assemble((f" {label:<10}", "dim"), text.translate(_CONTROLS)), soft_wrap=True)
        else:
            told = Text.assemble((sample.prompt, "bold"), sample.text.translate(_CONTROLS))
            console.print(told, soft_wrap=True)


def _stream_to(console: Console) -> Emit:
    """Writes pieces of text as they come, untouched by the console's wrapping."""

    def emit(text: str) -> None:
        console.file.write(text.translate(_CONTROLS))
        console.file.flush()

    return emit


def _keep(run_dir: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        append_json_line(run_dir / SAMPLES_FILE, sample.row())
