"""Rules of a data section that says how its folder is made; rows of the table of `pretrain.rules`, whose preface they share."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.settings import DataSettings
from pretrain.rule import Rule

SMALLEST_BYTE_VOCABULARY = 259
"""256 bytes and three special tokens."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Preparation:
    """A data section that says how its folder is made."""

    data: DataSettings
    prepare: PrepareSettings

    def corpora(self) -> dict[str, CorpusSettings]:
        """Each corpus by its path in the config."""
        prefix = "data.prepare"
        if not self.prepare.corpora:
            return {f"{prefix}.corpus": corpus for corpus in self.prepare.sources.values()}
        return {f"{prefix}.corpora.{name}": corpus for name, corpus in self.prepare.corpora.items()}


def _of_corpora(
    name: str, broken: Callable[[CorpusSettings], bool], message: Callable[[str, CorpusSettings], str]
) -> Rule[Preparation]:
    """A rule that every corpus must keep; the first that breaks it is told by its path."""
    return Rule(
        name,
        lambda p: any(broken(corpus) for corpus in p.corpora().values()),
        lambda p: next(message(path, corpus) for path, corpus in p.corpora().items() if broken(corpus)),
    )


def _is_pinned(corpus: CorpusSettings) -> bool:
    if corpus.name is None:
        return False
    return Path(corpus.name).expanduser().is_dir() or _COMMIT.fullmatch(corpus.revision or "") is not None


def _shown(value: str | None) -> str:
    return "null" if value is None else value


def _unblended(preparation: Preparation) -> str | None:
    """A corpus that no blend names, or a name in a blend that is no corpus."""
    order, sources = preparation.data.order, preparation.prepare.sources
    blends = [stage.weights for stage in order.stages] or ([] if order.weights is None else [order.weights])
    named = {name for weights in blends for name in weights}
    return next(iter(sorted(named ^ set(sources))), None) if blends else None


def _steps(prepare: PrepareSettings) -> list[str]:
    """Steps that are made for documents, by their fields."""
    cleaning = [f"cleaning.{name}" for name in type(prepare.cleaning).model_fields if getattr(prepare.cleaning, name)]
    return cleaning + (["dedup.method"] if prepare.dedup.method == "minhash" else [])


def _off(field: str) -> str:
    return "exact" if field == "dedup.method" else "null"


def _wrong_kind(preparation: Preparation, corpus: CorpusSettings) -> bool:
    return (corpus.kind == "pairs") != (preparation.data.objective == "seq2seq")


def _kind_message(preparation: Preparation) -> str:
    path, corpus = next((p, c) for p, c in preparation.corpora().items() if _wrong_kind(preparation, c))
    if corpus.kind == "pairs":
        return f"{path} gives pairs, which data.objective=causal does not read; set data.objective=seq2seq, or name a text_field"
    return (
        f"{path}.source={corpus.source} gives text, but data.objective=seq2seq reads pairs; set source_field and target_field, "
        "take source=message_catalogues or aligned_text, or set data.objective=causal"
    )


PREPARE_RULES: tuple[Rule[Preparation], ...] = (
    Rule(
        "corpus_is_named_once",
        lambda p: (p.prepare.corpus is None) == (not p.prepare.corpora),
        lambda p: (
            "data.prepare.corpus and data.prepare.corpora are both set; set data.prepare.corpus=null where corpora names them all"
            if p.prepare.corpora
            else "data.prepare.corpus is missing: it says where documents come from; set it, or several by name in "
            "data.prepare.corpora"
        ),
    ),
    _of_corpora(
        "corpus_needs_paths",
        lambda c: c.source in ("text", "jsonl", "parquet", "aligned_text") and not c.paths,
        lambda path, c: (
            f"{path}.paths is empty, but {path}.source={c.source} reads files; name files, folders or globs, for example "
            f"--set '{path}.paths=[corpus/**/*.txt]'"
        ),
    ),
    _of_corpora(
        "catalogues_need_place",
        lambda c: c.source == "message_catalogues" and not c.paths and not c.packages,
        lambda path, c: (
            f"{path}.paths and .packages are empty, but source=message_catalogues reads .mo files; name files or "
            "folders in paths, or Debian packages in packages"
        ),
    ),
    _of_corpora(
        "aligned_text_has_two_sides",
        lambda c: c.source == "aligned_text" and len(c.paths) != len(c.target_paths),
        lambda path, c: (
            f"{path}.target_paths names {len(c.target_paths)} files where .paths names {len(c.paths)}: source=aligned_text reads "
            "pairs line by line, so each file needs its other side, in the same order"
        ),
    ),
    _of_corpora(
        "pairs_have_two_fields",
        lambda c: (c.source_field is None) != (c.target_field is None),
        lambda path, c: (
            f"{path}.source_field={_shown(c.source_field)} and .target_field={_shown(c.target_field)}: pairs need both; set the "
            "other one too, or neither for text"
        ),
    ),
    _of_corpora(
        "hub_needs_revision",
        lambda c: c.source == "hub" and not _is_pinned(c),
        lambda path, c: (
            f"{path}.name={_shown(c.name)} and .revision={_shown(c.revision)}: source=hub takes a data set's name and a commit "
            "of 40 digits, or a local folder: only a pinned commit gives the same corpus again, a branch moves; take it from the "
            "data set's page"
        ),
    ),
    Rule(
        "corpus_fits_objective",
        lambda p: any(_wrong_kind(p, corpus) for corpus in p.corpora().values()),
        _kind_message,
    ),
    Rule(
        "bands_fit_the_signature",
        lambda p: p.prepare.dedup.slots_in_bands > p.prepare.dedup.permutations,
        lambda p: (
            f"data.prepare.dedup.bands={p.prepare.dedup.bands} x .rows_per_band={p.prepare.dedup.rows_per_band} need "
            f"{p.prepare.dedup.slots_in_bands} slots, but data.prepare.dedup.permutations={p.prepare.dedup.permutations}; at "
            f"most {p.prepare.dedup.permutations // p.prepare.dedup.rows_per_band} bands fit"
        ),
    ),
    Rule(
        "weights_name_the_corpora",
        lambda p: bool(p.prepare.sources) and _unblended(p) is not None,
        lambda p: (
            f"data.order gives no weight to the corpus {_unblended(p)} of data.prepare, or names one that is not there; each of "
            f"{', '.join(p.prepare.sources)} needs its share, 0 to leave it out"
        ),
    ),
    Rule(
        "cleaning_is_of_text",
        lambda p: bool(p.prepare.sources) and p.prepare.kind == "pairs" and bool(_steps(p.prepare)),
        lambda p: (
            f"data.prepare.{_steps(p.prepare)[0]} works on documents, but the corpus gives pairs, which have rules of their own; "
            f"set data.prepare.{_steps(p.prepare)[0]}={_off(_steps(p.prepare)[0])}"
        ),
    ),
    Rule(
        "vocabulary_holds_bytes",
        lambda p: p.prepare.tokenizer.path is None and p.prepare.tokenizer.vocab_size < SMALLEST_BYTE_VOCABULARY,
        lambda p: (
            f"data.prepare.tokenizer.vocab_size={p.prepare.tokenizer.vocab_size} must be at least "
            f"{SMALLEST_BYTE_VOCABULARY}: 256 bytes and the special tokens; 8192 suits a small model"
        ),
    ),
)
"""Rules of a data section that says how its folder is made."""
