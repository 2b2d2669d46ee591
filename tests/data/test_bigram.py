"""The bigram baseline: a distribution, and better than its parts."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.batches import training_batches
from pretrain.data.bigram import BigramModel, bigram_baseline, valid_pairs
from pretrain.data.settings import DataSettings
from pretrain.data.validation import validation_batches
from tests.data.folders import write_folder

V = 50


def chain(length: int, seed: int) -> np.ndarray:
    """Tokens of a Markov chain in which the next is mostly one of three."""
    random = np.random.default_rng(seed)
    tokens = [3]
    for _ in range(length - 1):
        likely = (tokens[-1] * 7 + random.integers(0, 3)) % (V - 3) + 3
        tokens.append(int(likely) if random.random() < 0.8 else int(random.integers(3, V)))
    return np.array(tokens)


@pytest.fixture(scope="module")
def model() -> BigramModel:
    tokens = chain(3000, seed=1)
    return BigramModel.fit(tokens[:-1], tokens[1:], V)


def test_probabilities_sum_to_one_after_every_context(model: BigramModel) -> None:
    for context in range(V):  # 0, 1 and 2 were never seen
        total = model.probabilities(np.full(V, context), np.arange(V)).sum()
        assert total == pytest.approx(1.0, abs=1e-12)


def test_every_token_has_some_probability(model: BigramModel) -> None:
    contexts, targets = np.divmod(np.arange(V * V), V)
    assert model.probabilities(contexts, targets).min() > 0


def test_it_beats_unigram_and_uniform_on_held_out_text(model: BigramModel) -> None:
    held_out = chain(2000, seed=2)
    unigram = float(-np.log(model.unigram[held_out[1:]]).mean())
    assert model.loss(held_out[:-1], held_out[1:]) < unigram - 0.5 and unigram < np.log(V)


def test_probabilities_are_those_of_the_formula() -> None:
    contexts, targets = np.array([0, 0, 0, 0, 1]), np.array([1, 1, 2, 3, 0])
    model = BigramModel.fit(contexts, targets, 4)
    # Counts of pairs 2, 1, 1, 1: n1 = 3, n2 = 1, d = 3/5. Unigram counts 1, 2, 1, 1: the same discount.
    discount = 3 / 5
    unigram = (np.array([1, 2, 1, 1]) - discount) / 5 + discount * 4 / 5 / 4
    np.testing.assert_allclose(model.unigram, unigram)
    expected = np.array([0, 2 - discount, 1 - discount, 1 - discount]) / 4 + discount * 3 / 4 * unigram
    np.testing.assert_allclose(model.probabilities(np.zeros(4, int), np.arange(4)), expected)
    np.testing.assert_allclose(model.probabilities(np.full(4, 2), np.arange(4)), unigram)


def test_a_model_of_nothing_is_uniform() -> None:
    nothing = np.empty(0, dtype=np.int64)
    assert BigramModel.fit(nothing, nothing, V).loss(np.array([1]), np.array([2])) == pytest.approx(np.log(V))


def test_the_baseline_is_fitted_on_what_training_saw_and_on_nothing_else(tmp_path: Path) -> None:
    documents = [chain(60, seed=seed).tolist() for seed in range(40)]
    write_folder(tmp_path, documents[:30], documents[30:], vocab_size=V)
    data = DataSettings(dir=str(tmp_path), sequence_length=16)
    seen = []
    with training_batches(
        data, seed=3, global_batch_sequences=4, micro_batch_sequences=4, data_rank=0, data_size=1, first_step=0
    ) as batches:
        seen = [valid_pairs(next(batches)) for _ in range(5)]
    model = BigramModel.fit(np.concatenate([c for c, _ in seen]), np.concatenate([t for _, t in seen]), V)
    held_out = validation_batches(data, sequences=9, micro_batch_sequences=3, data_rank=0, data_size=1)
    expected = model.loss(*valid_pairs(held_out))
    found = bigram_baseline(data, seed=3, global_batch_sequences=4, steps=5, sequences=9)
    assert found == pytest.approx(expected, rel=1e-12)
    assert bigram_baseline(data, seed=3, global_batch_sequences=4, steps=20, sequences=9) < found


def test_a_second_epoch_changes_nothing(tmp_path: Path) -> None:
    documents = [chain(60, seed=seed).tolist() for seed in range(12)]
    write_folder(tmp_path, documents[:10], documents[10:], vocab_size=V)
    data = DataSettings(dir=str(tmp_path), sequence_length=16)
    losses = [bigram_baseline(data, seed=1, global_batch_sequences=4, steps=steps) for steps in (10, 40, 80)]
    assert losses[0] == pytest.approx(losses[1]) == pytest.approx(losses[2])
