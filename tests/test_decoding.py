"""Decoding on models whose distributions are written down: every choice can be checked by hand."""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import pytest
import torch

from pretrain.decoding import (
    Sampling,
    StagedModel,
    Vocabulary,
    beam_search,
    choose,
    continue_rows,
    length_penalty,
)
from pretrain.model.carry import Carry
from pretrain.model.layers import LayerStack, build_layers
from pretrain.model.settings import ModelSettings
from pretrain.parallel.sequence import ModelMesh

STOP, START, A, B = 0, 1, 2, 3
VOCABULARY = Vocabulary(stop=STOP, banned=(START,), padding=START)
GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)


class Table:
    """A model that is a table from the tokens so far (the start aside) to probabilities of (STOP, START, A, B)."""

    def __init__(self, table: dict[tuple[int, ...], tuple[float, ...]]) -> None:
        self.table = table

    def encode(self, sources: Sequence[Sequence[int]], padding: int) -> Carry:
        return {"hidden": torch.zeros(len(sources), 1)}

    def next_logits(self, rows: Sequence[Sequence[int]], encoded: Carry | None, padding: int) -> torch.Tensor:
        return torch.tensor([self.table[tuple(row[1:])] for row in rows]).log()


def model_of(table: dict[tuple[int, ...], tuple[float, ...]]) -> StagedModel:
    return cast("StagedModel", Table(table))


GARDEN_PATH = {
    # Greedy takes A (0.6), after which everything is unlikely; B and then the end have 0.4 x 0.9 together.
    (): (0.0, 0.0, 0.6, 0.4),
    (A,): (0.3, 0.0, 0.35, 0.35),
    (B,): (0.9, 0.0, 0.05, 0.05),
    **dict.fromkeys(itertools.product((A, B), repeat=2), (0.4, 0.0, 0.3, 0.3)),
}


def search(table: dict[tuple[int, ...], tuple[float, ...]], beam_size: int, limit: int = 3) -> list[int]:
    (found,) = beam_search(model_of(table), [[9]], START, [limit], beam_size, VOCABULARY)
    return found


def best_by_enumeration(table: dict[tuple[int, ...], tuple[float, ...]], limit: int) -> list[int]:
    scores = {}
    for length in range(limit):
        for tokens in itertools.product((A, B), repeat=length):
            probability = math.prod(table[tokens[:place]][token] for place, token in enumerate(tokens))
            probability *= table[tokens][STOP]
            if probability:
                scores[tokens] = math.log(probability) / length_penalty(length + 1)
    return list(max(scores, key=lambda tokens: scores[tokens]))


def test_beam_search_finds_what_greedy_misses() -> None:
    (greedy,) = continue_rows(model_of(GARDEN_PATH), [[START]], [3], GREEDY, VOCABULARY, sources=[[9]])
    assert greedy[:1] == [A]
    assert search(GARDEN_PATH, 2) == [B] == best_by_enumeration(GARDEN_PATH, 3)


def test_a_beam_that_holds_everything_is_exact() -> None:
    random = torch.Generator().manual_seed(5)
    for _ in range(50):
        table = {}
        for length in range(4):
            for tokens in itertools.product((A, B), repeat=length):
                p, q = torch.rand(2, generator=random).tolist()
                table[tokens] = (p, 0.0, (1 - p) * q, (1 - p) * (1 - q))
        assert search(table, 8, limit=4) == best_by_enumeration(table, 4)


def test_a_beam_of_one_is_greedy() -> None:
    (greedy,) = continue_rows(model_of(GARDEN_PATH), [[START]], [3], GREEDY, VOCABULARY, sources=[[9]])
    assert search(GARDEN_PATH, 1)[:1] == greedy[:1]


def test_length_normalisation_prefers_the_longer_of_equally_likely_steps() -> None:
    table = {(): (0.45, 0.0, 0.55, 0.0), (A,): (0.8, 0.0, 0.2, 0.0), (A, A): (1.0, 0.0, 0.0, 0.0)}
    # log 0.45 = -0.80 against log(0.55 x 0.8) = -0.82 / (7/6)^0.6
    assert search(table, 2) == [A]


def test_a_hypothesis_that_never_ends_is_cut_at_its_limit() -> None:
    endless = {tuple([A] * length): (0.0, 0.0, 0.9, 0.1) for length in range(5)}
    endless |= {(*[A] * length, B): (0.0, 0.0, 1.0, 0.0) for length in range(5)}
    endless |= {(*[A] * length, B, A): (0.0, 0.0, 1.0, 0.0) for length in range(5)}
    assert search(endless, 1, limit=3) == [A, A, A]


def test_searches_of_several_sources_do_not_mix() -> None:
    found = beam_search(model_of(GARDEN_PATH), [[9], [9, 9], [9]], START, [3, 1, 0], 2, VOCABULARY)
    assert found[0] == [B]
    assert found[1] in ([A], [])
    assert found[2] == []


def test_greedy_takes_the_likeliest_token() -> None:
    logits = torch.tensor([[0.1, 0.2, 3.0, 1.0], [5.0, 0.2, 3.0, 1.0]])
    assert choose(logits, GREEDY, []) == [2, 0]


def test_sampling_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    counts = frequencies(probabilities, Sampling(temperature=1.0, top_p=1.0, seed=1))
    assert torch.allclose(counts, probabilities.double(), atol=0.03)


def test_top_p_cuts_the_tail_and_keeps_the_token_that_crosses_it() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = frequencies(probabilities, Sampling(temperature=1.0, top_p=0.6, seed=1))
    assert torch.allclose(counts, torch.tensor([0.625, 0.375, 0.0, 0.0], dtype=torch.float64), atol=0.03)


def test_a_tiny_top_p_is_greedy() -> None:
    counts = frequencies(torch.tensor([0.2, 0.5, 0.3, 0.0]), Sampling(temperature=1.0, top_p=1e-9, seed=1))
    assert counts.tolist() == [0, 1, 0, 0]


def test_a_low_temperature_sharpens() -> None:
    counts = frequencies(torch.tensor([0.4, 0.6, 0.0, 0.0]), Sampling(temperature=0.1, top_p=1.0, seed=1))
    assert counts[1] > 0.95


def frequencies(probabilities: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    draws = 4000
    generator = torch.Generator().manual_seed(sampling.seed)
    logits = probabilities.log().expand(draws, -1)
    chosen = choose(logits, sampling, [generator] * draws)
    return torch.bincount(torch.tensor(chosen), minlength=4).double() / draws


def test_banned_tokens_are_never_chosen_and_the_stop_token_ends_a_row() -> None:
    table = {(): (0.1, 0.8, 0.1, 0.0), (A,): (0.9, 0.05, 0.05, 0.0)}
    sampling = Sampling(temperature=2.0, top_p=1.0, seed=0)
    rows = continue_rows(model_of(table), [[START]] * 30, [1] * 30, sampling, VOCABULARY)
    assert {tuple(row) for row in rows} == {(), (A,)}


def test_tokens_are_told_in_order_as_they_are_chosen() -> None:
    told: list[tuple[int, int]] = []
    rows = continue_rows(
        model_of(GARDEN_PATH),
        [[START], [START]],
        [2, 1],
        GREEDY,
        VOCABULARY,
        on_token=lambda row, token: told.append((row, token)),
    )
    assert [[token for row, token in told if row == number] for number in (0, 1)] == rows


DECODER = ModelSettings(
    vocab_size=40, d_model=32, num_layers=2, num_heads=4, d_ff=48, max_sequence_length=16, dropout=0.1
)
ENCODER_DECODER = ModelSettings(
    architecture="encoder_decoder",
    vocab_size=40,
    d_model=32,
    num_layers=2,
    num_encoder_layers=2,
    num_heads=4,
    d_ff=48,
    max_sequence_length=16,
    positions="sinusoidal",
    norm_position="post",
)


def stack_of(settings: ModelSettings) -> LayerStack:
    return LayerStack(build_layers(settings, ModelMesh(), seed=3)).eval()


@torch.inference_mode()
def whole_logits(stack: LayerStack, row: Sequence[int], source: Sequence[int] | None) -> torch.Tensor:
    """Logits at the end of one row, by the plain forward pass of the whole model."""
    tokens = torch.tensor([row])
    inputs = {
        "tokens": tokens,
        "positions": torch.arange(len(row))[None],
        "documents": torch.zeros_like(tokens),
        "sample": torch.zeros(1, dtype=torch.int64),
    }
    if source is not None:
        inputs["source_tokens"] = torch.tensor([source])
        inputs["source_documents"] = torch.zeros_like(inputs["source_tokens"])
    return stack(inputs)[0, -1]


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
def test_padded_rows_have_the_logits_of_single_ones(positions: str) -> None:
    stack = stack_of(DECODER.model_copy(update={"positions": positions}))
    rows = [[3, 4, 5, 6, 7], [8], [9, 10, 11]]
    logits = StagedModel(stack).next_logits(rows, None, padding=2)
    for row, got in zip(rows, logits, strict=True):
        assert torch.allclose(got, whole_logits(stack, row, None), atol=1e-5)


def test_an_encoder_run_once_gives_the_logits_of_the_whole_model() -> None:
    stack = stack_of(ENCODER_DECODER)
    model = StagedModel(stack)
    sources, rows = [[3, 4, 5, 6], [7, 8]], [[1, 9], [1, 10, 11]]
    with torch.inference_mode():
        logits = model.next_logits(rows, model.encode(sources, padding=2), padding=2)
    for row, source, got in zip(rows, sources, logits, strict=True):
        assert torch.allclose(got, whole_logits(stack, row, source), atol=1e-5)


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    model = StagedModel(stack_of(DECODER))
    vocabulary = Vocabulary(stop=0, banned=(1, 2), padding=2)

    def rows(seed: int) -> list[list[int]]:
        return continue_rows(model, [[5, 6], [7]], [8, 8], Sampling(1.0, 1.0, seed), vocabulary)

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert rows(1)[0] != rows(1)[1], "prompts draw from streams of their own"
