"""What a position may see: nothing later, nothing of another document, no padding of the source."""

import pytest
import torch

from pretrain.model.masks import Masks
from tests.model.small_models import FAMILIES, LENGTH, VOCABULARY, build, positions_in, random_inputs, settings

_DECODERS = [name for name in FAMILIES if FAMILIES[name].get("architecture") != "encoder_decoder"]
_ENCODER_DECODERS = [name for name in FAMILIES if name not in _DECODERS]
_BOUND = 2e-5


def _one_document(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    documents = torch.zeros_like(inputs["documents"])
    sources = torch.zeros_like(inputs["source_documents"])
    return {**inputs, "documents": documents, "positions": positions_in(documents), "source_documents": sources}


def _changed(inputs: dict[str, torch.Tensor], field: str, columns: slice) -> dict[str, torch.Tensor]:
    tokens = inputs[field].clone()
    tokens[:, columns] = (tokens[:, columns] + 1) % VOCABULARY
    return {**inputs, field: tokens}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("windows", ["one document", "many documents"])
def test_a_later_token_never_changes_an_earlier_logit(family: str, windows: str) -> None:
    model = settings(family)
    stack = build(model).eval()
    inputs = random_inputs(model)
    if windows == "one document":
        inputs = _one_document(inputs)
    before = stack(inputs)
    for column in (1, 6, LENGTH - 1):
        after = stack(_changed(inputs, "tokens", slice(column, None)))
        torch.testing.assert_close(after[:, :column], before[:, :column], atol=_BOUND, rtol=0)
        assert (after[:, column] - before[:, column]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("family", _DECODERS)
def test_attention_does_not_cross_documents(family: str) -> None:
    """The second document of the second window: whatever the first one is, and alone in a window of its own."""
    model = settings(family)
    stack = build(model).eval()
    inputs = random_inputs(model)
    packed = stack(inputs)[1, 5:]
    disturbed = stack(_changed(inputs, "tokens", slice(0, 5)))[1, 5:]
    torch.testing.assert_close(disturbed, packed, atol=_BOUND, rtol=0)
    alone = {name: tensor[1:2, 5:] for name, tensor in inputs.items() if name != "sample"}
    alone = {**alone, "documents": torch.zeros(1, LENGTH - 5, dtype=torch.long), "sample": inputs["sample"][1:2]}
    torch.testing.assert_close(stack(alone)[0], packed, atol=_BOUND, rtol=0)


@pytest.mark.parametrize("family", _ENCODER_DECODERS)
def test_pairs_packed_in_a_window_do_not_see_each_other(family: str) -> None:
    model = settings(family)
    stack = build(model).eval()
    inputs = random_inputs(model)
    packed = stack(inputs)[1]
    # Columns 0 to 4 of the target, and 0 to 5 of the source, are the first pair of the second window.
    for field, first_pair in (("tokens", slice(0, 5)), ("source_tokens", slice(0, 6))):
        disturbed = stack(_changed(inputs, field, first_pair))[1]
        torch.testing.assert_close(disturbed[5:], packed[5:], atol=_BOUND, rtol=0)
        assert (disturbed[:5] - packed[:5]).abs().amax(-1).min() > 1e-3
    alone = {
        "tokens": inputs["tokens"][1:2, 5:],
        "positions": inputs["positions"][1:2, 5:],
        "documents": torch.zeros(1, LENGTH - 5, dtype=torch.long),
        "sample": inputs["sample"][1:2],
        "source_tokens": inputs["source_tokens"][1:2, 6:],
        "source_documents": torch.zeros(1, LENGTH - 4, dtype=torch.long),
    }
    torch.testing.assert_close(stack(alone)[0], packed[5:], atol=_BOUND, rtol=0)


@pytest.mark.parametrize("family", _ENCODER_DECODERS)
def test_padding_of_the_source_is_not_seen(family: str) -> None:
    model = settings(family)
    stack = build(model).eval()
    inputs = random_inputs(model)
    documents = torch.zeros_like(inputs["documents"])
    sources = torch.zeros_like(inputs["source_documents"])
    sources[:, 9:] = -1
    inputs = {**inputs, "documents": documents, "positions": positions_in(documents), "source_documents": sources}
    padded = stack(inputs)
    torch.testing.assert_close(stack(_changed(inputs, "source_tokens", slice(9, None))), padded, atol=_BOUND, rtol=0)
    cut = {**inputs, "source_tokens": inputs["source_tokens"][:, :9], "source_documents": sources[:, :9]}
    torch.testing.assert_close(stack(cut), padded, atol=_BOUND, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_of_padding_gives_finite_logits_and_gradients(family: str) -> None:
    model = settings(family)
    stack = build(model)
    inputs = random_inputs(model)
    for field in ("documents", "source_documents"):
        inputs[field] = inputs[field].clone()
        inputs[field][1] = -1
    logits = stack(inputs)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stack.parameters())


def test_a_target_whose_source_is_missing_gives_finite_logits() -> None:
    model = settings("transformer")
    inputs = random_inputs(model)
    inputs["documents"] = inputs["documents"] + 7
    assert build(model)(inputs).isfinite().all()


def test_one_document_a_window_needs_no_mask() -> None:
    documents = torch.zeros(2, 6, dtype=torch.long)
    documents[1] = 3
    assert Masks().causal(documents, torch.float32).causal
    documents[1, 4:] = -1
    assert Masks().causal(documents, torch.float32).causal, "padding at the end changes nothing"
    documents[1] = torch.tensor([-1, -1, 3, 3, 3, 3])
    assert not Masks().causal(documents, torch.float32).causal, "padding before a document would be seen by it"


def test_a_mask_is_made_once_for_the_layers_of_a_stage_and_never_stale() -> None:
    masks = Masks()
    documents = torch.tensor([[0, 0, 1, 1]])
    first = masks.causal(documents, torch.float32)
    assert masks.causal(documents, torch.float32) is first
    assert masks.causal(documents, torch.bfloat16) is not first
    second = masks.causal(documents.clone(), torch.float32)
    assert second is not first
    documents[0, 2:] = 0
    assert masks.causal(documents, torch.float32).causal, "the same tensor with other numbers in it"


def test_masks_are_those_of_the_definition() -> None:
    documents = torch.tensor([[0, 0, 1, -1], [2, 2, 2, 2]])
    sources = torch.tensor([[0, 1, 1, -1, -1], [-1, -1, -1, -1, -1]])
    masks = Masks()
    causal = masks.causal(documents, torch.float32).additive
    source = masks.source(sources, torch.float32).additive
    cross = masks.cross(documents, sources, torch.float32).additive
    assert causal is not None and source is not None and cross is not None
    assert (causal[0, 0] == 0).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert (source[0, 0] == 0).int().tolist() == [[1, 0, 0, 0, 0], *[[0, 1, 1, 0, 0]] * 2, *[[0, 0, 0, 1, 1]] * 2]
    assert (cross[0, 0] == 0).int().tolist() == [[1, 0, 0, 0, 0]] * 2 + [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert (cross[1, 0] == 0).all(), "a row without any source sees what is there: no NaN"
