"""Rows: nothing crosses a document, a pair stays a pair, padding is no target."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.micro_batch import IGNORED
from pretrain.data.objectives import CausalWindows, PairRows, Rows, build_objective
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.errors import DataError
from tests.data.folders import SPECIAL, counted_pairs, text_documents, write_folder

LENGTH = 16


def filled(objective: CausalWindows | PairRows, samples: np.ndarray) -> Rows:
    rows = Rows.empty(len(samples), objective.widths, objective.sequence_length)
    for array in (*rows.fields.values(), rows.labels):
        array.fill(-77)  # what a fill forgets shows
    objective.lay_out(rows)
    objective.fill(samples, rows)
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path, text_documents(80, seed=1), text_documents(9, seed=2))
    return tmp_path


def causal(folder: Path, mask: str = "isolate") -> tuple[CausalWindows, np.ndarray]:
    shards = TokenShards.open(folder, "train")
    return CausalWindows(shards, LENGTH, mask), shards.read(0, shards.num_tokens).astype(np.int64)


def test_windows_hold_the_stream_and_each_position_predicts_the_next(folder: Path) -> None:
    objective, stream = causal(folder)
    rows = filled(objective, np.arange(objective.num_samples))
    used = objective.num_samples * LENGTH
    np.testing.assert_array_equal(rows.fields["tokens"].ravel(), stream[:used])
    labels, following = rows.labels.ravel(), stream[1 : used + 1]
    assert ((labels == following) | (labels == IGNORED)).all()
    assert objective.num_samples == (len(stream) - 1) // LENGTH


def test_no_target_crosses_a_document_and_no_other_is_lost(folder: Path) -> None:
    objective, _ = causal(folder)
    rows = filled(objective, np.arange(objective.num_samples))
    np.testing.assert_array_equal(rows.labels == IGNORED, rows.fields["tokens"] == SPECIAL.end_of_text)


def test_positions_and_document_numbers_follow_the_documents(folder: Path) -> None:
    objective, _ = causal(folder)
    rows = filled(objective, np.arange(objective.num_samples))
    for tokens, positions, documents in zip(
        rows.fields["tokens"], rows.fields["positions"], rows.fields["documents"], strict=True
    ):
        number = place = 0
        for at in range(LENGTH):
            assert (positions[at], documents[at]) == (place, number)
            number, place = (number + 1, 0) if tokens[at] == SPECIAL.end_of_text else (number, place + 1)


def test_cross_leaves_documents_joined(folder: Path) -> None:
    objective, stream = causal(folder, "cross")
    rows = filled(objective, np.arange(3))
    np.testing.assert_array_equal(rows.labels.ravel(), stream[1 : 3 * LENGTH + 1])
    assert (rows.fields["documents"] == 0).all() and (rows.fields["positions"] == np.arange(LENGTH)).all()


def test_the_last_short_window_is_padded(folder: Path) -> None:
    objective, stream = causal(folder)
    rest = (len(stream) - 1) % LENGTH
    assert rest, "the fixture must leave a short window"
    rows = filled(objective, np.array([objective.num_validation_samples - 1]))
    assert (rows.labels[0, rest:] == IGNORED).all() and (rows.fields["documents"][0, rest:] == -1).all()
    assert (rows.fields["tokens"][0, rest:] == SPECIAL.padding).all() and (
        rows.fields["positions"][0, rest:] == 0
    ).all()
    np.testing.assert_array_equal(rows.fields["tokens"][0, :rest], stream[-rest - 1 : -1])
    assert rows.labels[0, rest - 1] == stream[-1] and (rows.fields["documents"][0, :rest] >= 0).all()


@pytest.mark.parametrize("packing", ["packed", "single"])
def test_sources_and_targets_stay_together(tmp_path: Path, packing: str) -> None:
    pairs = counted_pairs(50, seed=4)
    write_folder(tmp_path, pairs, pairs[:1], kind="pairs", vocab_size=60_000)
    objective = PairRows(TokenShards.open(tmp_path, "train"), LENGTH, LENGTH, packing)
    rows = filled(objective, np.arange(objective.num_samples))
    seen = []
    for row in range(objective.num_samples):
        for number in range(rows.fields["documents"][row].max() + 1):
            source = rows.fields["source_tokens"][row][rows.fields["source_documents"][row] == number]
            target = rows.fields["documents"][row] == number
            inputs, labels = rows.fields["tokens"][row][target], rows.labels[row][target]
            assert inputs[0] == SPECIAL.target and labels[-1] == SPECIAL.end_of_text
            np.testing.assert_array_equal(inputs[1:], labels[:-1])
            assert rows.fields["positions"][row][target].tolist() == list(range(len(inputs)))
            seen.append((source.tolist(), labels[:-1].tolist()))
    assert seen == [(list(source), list(target)) for source, target in pairs]


def test_packing_fills_rows_in_order_and_never_over(tmp_path: Path) -> None:
    pairs = counted_pairs(60, seed=5)
    write_folder(tmp_path, pairs, pairs[:1], kind="pairs", vocab_size=60_000)
    shards = TokenShards.open(tmp_path, "train")
    objective = PairRows(shards, LENGTH, LENGTH, "packed")
    rows = filled(objective, np.arange(objective.num_samples))
    sources = (rows.fields["source_documents"] >= 0).sum(axis=1)
    targets = (rows.labels != IGNORED).sum(axis=1)
    assert targets.sum() == sum(len(target) + 1 for _, target in pairs) and sources.sum() == sum(
        len(s) for s, _ in pairs
    )
    assert objective.num_samples < 0.6 * len(pairs)
    next_pair = np.cumsum(rows.fields["documents"].max(axis=1) + 1)[:-1]
    for row, pair in enumerate(next_pair):  # the next pair would not have fitted
        assert sources[row] + len(pairs[pair][0]) > LENGTH or targets[row] + len(pairs[pair][1]) + 1 > LENGTH


def test_padding_of_pairs_is_no_document_and_no_target(tmp_path: Path) -> None:
    write_folder(tmp_path, [([5, 5], [9])], [([5], [9])], kind="pairs")
    rows = filled(PairRows(TokenShards.open(tmp_path, "train"), 4, 6, "packed"), np.array([0]))
    assert rows.fields["source_tokens"][0].tolist() == [5, 5, *[SPECIAL.padding] * 4]
    assert rows.fields["source_documents"][0].tolist() == [0, 0, -1, -1, -1, -1]
    assert rows.fields["tokens"][0].tolist() == [SPECIAL.target, 9, SPECIAL.padding, SPECIAL.padding]
    assert rows.fields["documents"][0].tolist() == [0, 0, -1, -1]
    assert rows.labels[0].tolist() == [9, SPECIAL.end_of_text, IGNORED, IGNORED]


def test_long_pairs_are_cut_counted_and_told(tmp_path: Path) -> None:
    pairs = [([5] * 10, [9] * 3), ([6] * 2, [8] * 12), ([7], [7])]
    write_folder(tmp_path, pairs, pairs[:1], kind="pairs")
    objective = PairRows(TokenShards.open(tmp_path, "train"), 6, 4, "single")
    rows = filled(objective, np.arange(3))
    assert rows.fields["source_tokens"][0].tolist() == [5] * 4
    assert rows.labels[1].tolist() == [8] * 6 and rows.fields["tokens"][1].tolist() == [SPECIAL.target, *[8] * 5]
    told = " ".join(objective.notes)
    assert "1 of 3 pairs have a source longer than data.source_length=4" in told and "has 10 tokens" in told
    assert "1 of 3 pairs have a target longer than data.sequence_length=6" in told and "has 13 tokens" in told


def test_whole_pairs_are_read_without_special_tokens(tmp_path: Path) -> None:
    pairs = counted_pairs(20, seed=6)
    write_folder(tmp_path, pairs, pairs[:1], kind="pairs", vocab_size=60_000)
    objective = PairRows(TokenShards.open(tmp_path, "train"), 4, 4, "packed")
    read = [tuple(side.tolist() for side in objective.pair(number)) for number in range(objective.num_pairs)]
    assert read == [(list(source), list(target)) for source, target in pairs]


def test_seq2seq_on_plain_documents_is_refused(folder: Path) -> None:
    data = DataSettings(dir=str(folder), objective="seq2seq", sequence_length=8)
    with pytest.raises(DataError, match=r"data\.objective is seq2seq.*set data\.objective to causal"):
        build_objective(data, TokenShards.open(folder, "train"))


def test_rows_of_several_sources_are_those_of_each_alone(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for number, folder in enumerate(folders):
        write_folder(folder, counted_pairs(60, seed=number), [], kind="pairs", vocab_size=60_000)
    data = DataSettings(dir="", objective="seq2seq", sequence_length=LENGTH, source_length=12)
    streams = [TokenShards.open(folder, "train") for folder in folders]
    both, alone = build_objective(data, *streams), [build_objective(data, stream) for stream in streams]
    assert both.source_samples == tuple(part.num_samples for part in alone)
    samples, sources = np.array([3, 0, 5, 5]), np.array([0, 1, 1, 0])
    rows = Rows.empty(4, both.widths, LENGTH)
    both.fill(samples, rows, sources)
    for row, (sample, source) in enumerate(zip(samples, sources, strict=True)):
        expected = Rows.empty(1, both.widths, LENGTH)
        alone[source].fill(np.array([sample]), expected)
        np.testing.assert_array_equal(rows.labels[row], expected.labels[0])
        for name in both.widths:
            np.testing.assert_array_equal(rows.fields[name][row], expected.fields[name][0])


def test_windows_are_the_same_however_many_are_filled_at_once(folder: Path) -> None:
    objective, _ = causal(folder)
    together = filled(objective, np.arange(objective.num_samples))
    objective._chunk = 3
    apart = filled(objective, np.arange(objective.num_samples))
    np.testing.assert_array_equal(together.labels, apart.labels)
    for name in ("tokens", "positions", "documents"):
        np.testing.assert_array_equal(together.fields[name], apart.fields[name])
