"""Rules of a data section that says how its folder is made; rows of the table of `pretrain.rules`, whose preface they share."""

from collections.abc import Callable
from dataclasses import dataclass

from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.settings import DataSettings
from pretrain.rule import Rule

SMALLEST_BYTE_VOCABULARY = 259
"""256 bytes and three special tokens."""


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


def _wrong_kind(preparation: Preparation, corpus: CorpusSettings) -> bool:
    return (corpus.kind == "pairs") != (preparation.data.objective == "seq2seq")


def _kind_message(preparation: Preparation) -> str:
    path, corpus = next((p, c) for p, c in preparation.corpora().items() if _wrong_kind(preparation, c))
    if corpus.kind == "pairs":
        return f"{path} gives pairs, which data.objective=causal does not read; set data.objective=seq2seq, or name a text_field"
    return (
        f"{path}.source={corpus.source} gives text, but data.objective=seq2seq reads pairs; set source_field and target_field, "
        "take source=message_catalogues, or set data.objective=causal"
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
        lambda c: c.source in ("text", "jsonl", "parquet") and not c.paths,
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
        "hub_needs_revision",
        lambda c: c.source == "hub" and not (c.name and c.revision),
        lambda path, c: (
            f"{path}.name={c.name} and .revision={c.revision} must both be set for source=hub: only a pinned commit gives the "
            "same corpus again; take the commit from the data set's page"
        ),
    ),
    Rule(
        "corpus_fits_objective",
        lambda p: any(_wrong_kind(p, corpus) for corpus in p.corpora().values()),
        _kind_message,
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
