"""Attention over a ring of ranks is attention, whatever the masks, the heads and the dropout, and its work is balanced."""

from dataclasses import dataclass

import pytest
import torch

from pretrain.model.block_kernels import CpuFlash, CudaEfficient, InTheOpen
from pretrain.model.dot_product import DotProduct, Mixer
from pretrain.model.dropout import HeadDropout
from pretrain.model.masks import Hop, Mask, Masks
from pretrain.model.ring_attention import RingDotProduct
from pretrain.model.ring_masks import RingMasks
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import Axis, ProcessMesh
from pretrain.parallel.sequence import SequenceSplit, WholeStream
from tests.worlds import World

LENGTH, SOURCE_LENGTH, HEADS, WIDTH, SEQUENCES = 32, 48, 4, 8, 3
SINGLE = SequenceSplit(Axis.single("ring"), Axis.single("ulysses"))
FP32_BOUND = 2e-6


@dataclass(frozen=True)
class Sight:
    """One kind of attention: who looks at whom."""

    kind: str
    packed: bool
    kv_heads: int = 2

    @property
    def keys(self) -> int:
        return SOURCE_LENGTH if self.kind == "cross" else LENGTH

    def mask(self, masks: Masks, dtype: torch.dtype) -> Mask:
        documents, sources = _documents(LENGTH, self.packed), _documents(SOURCE_LENGTH, self.packed)
        if self.kind == "causal":
            return masks.causal(documents, dtype)
        return masks.source(documents, dtype) if self.kind == "source" else masks.cross(documents, sources, dtype)


SIGHTS = [Sight(kind, packed) for kind in ("causal", "source", "cross") for packed in (False, True)]
SIGHTS += [Sight("causal", True, kv_heads) for kv_heads in (1, 4)]


def _documents(length: int, packed: bool) -> torch.Tensor:
    """Windows of one document, or of some with padding; one of them is padding alone."""
    documents = torch.zeros(SEQUENCES, length, dtype=torch.long)
    if packed:
        documents[1, length // 3 :] = 1
        documents[1, length // 2 :] = 2
        documents[1, -3:] = -1
        documents[2] = -1
    return documents


def _inputs(sight: Sight, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(LENGTH, HEADS), (sight.keys, sight.kv_heads), (sight.keys, sight.kv_heads), (LENGTH, HEADS)]
    return [torch.randn(SEQUENCES, length, heads, WIDTH, generator=generator).to(dtype) for length, heads in sizes]


def _run(mixer: Mixer, mask: Mask, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradients of queries, keys and values."""
    query, key, value, grad = (tensor.detach().clone().requires_grad_() for tensor in inputs)
    out = mixer(query, key, value, mask, torch.arange(7, 7 + SEQUENCES))
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in (query, key, value) if leaf.grad is not None)]


def _errors(size: int, sight: Sight, rate: float, dtype: torch.dtype) -> tuple[float, float]:
    """Largest error of the ring's output and gradients, and of the plain one's, against the plain one in fp32."""
    mesh = ProcessMesh.create(ParallelLayout(dp=4 // size, ring=size), torch.device("cpu"))
    sequence = SequenceSplit(mesh.ring, mesh.ulysses)
    drop = HeadDropout(rate, 3, "place", WholeStream(Axis.single("model"), SINGLE)) if rate else None
    plain = DotProduct(drop, 2)
    expected = _run(plain, sight.mask(Masks(), torch.float32), _inputs(sight, torch.float32))
    whole = _run(plain, sight.mask(Masks(), dtype), _inputs(sight, dtype))
    inputs = [sequence.take(tensor) for tensor in _inputs(sight, dtype)]
    found = _run(RingDotProduct(mesh.ring, drop, 2), sight.mask(RingMasks(mesh.ring), dtype), inputs)
    real = _documents(LENGTH, sight.packed) >= 0  # what padding sees is not defined: nothing reads it

    def largest(tensors: list[torch.Tensor], wanted: list[torch.Tensor], rows: torch.Tensor) -> float:
        errors = [(a.float() - b).abs().amax((-2, -1)) / b.abs().max() for a, b in zip(tensors, wanted, strict=True)]
        errors[0] = errors[0] * rows
        return max(float(error.max()) for error in errors)

    parts = [sequence.take(tensor) for tensor in expected]
    return largest(found, parts, sequence.take(real)), largest(whole, expected, real)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("sight", SIGHTS, ids=lambda sight: f"{sight.kind}-{sight.packed}-{sight.kv_heads}")
def test_a_ring_attends_like_one_rank(world: World, sight: Sight, size: int, rate: float) -> None:
    for error, _ in world.run(_errors, size, sight, rate, torch.float32):
        assert error < FP32_BOUND


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["causal", "cross"])
def test_a_ring_in_bf16_is_about_as_far_from_fp32_as_one_rank(world: World, kind: str, rate: float) -> None:
    for error, of_one_rank in world.run(_errors, 4, Sight(kind, True), rate, torch.bfloat16):
        assert error < 3 * of_one_rank < 0.05, "hops and their merging round a few times more"


def _rings(size: int) -> list[Axis]:
    return [Axis("ring", rank, tuple(range(size)), None) for rank in range(size)]


def _visible(mask: Mask) -> int:
    """Pairs of queries and keys that the hops of a rank compute where a sequence is one document."""
    pairs = 0
    for hop in mask.hops:
        queries, keys = len(hop.query_positions), sum(len(run) for run in hop.key_positions)
        pairs += queries * (queries + 1) // 2 if hop.mask.causal else queries * keys
    return pairs


@pytest.mark.parametrize("size", [2, 4])
def test_every_rank_of_a_ring_has_the_same_causal_work(size: int) -> None:
    documents = torch.zeros(1, LENGTH, dtype=torch.long)
    work = [_visible(RingMasks(ring).causal(documents, torch.float32)) for ring in _rings(size)]
    assert len(set(work)) == 1
    assert sum(work) == LENGTH * (LENGTH + 1) // 2, "and none of it twice or in vain"


def test_a_hop_of_one_document_needs_no_mask() -> None:
    masks = RingMasks(_rings(4)[1])
    one = torch.zeros(2, LENGTH, dtype=torch.long)
    for mask in (masks.causal(one, torch.float32), masks.source(one, torch.float32)):
        assert all(hop.mask.additive is None for hop in mask.hops)
    assert [hop.mask.causal for hop in masks.causal(one, torch.float32).hops] == [False, True, False, False]


@pytest.mark.parametrize("kind", ["causal", "source", "cross"])
def test_hops_of_all_ranks_are_the_mask_of_the_whole(kind: str) -> None:
    sight = Sight(kind, True)
    whole = sight.mask(Masks(), torch.float32).additive
    assert whole is not None
    found = torch.full_like(whole, float("-inf"))
    for ring in _rings(4):
        for hop in sight.mask(RingMasks(ring), torch.float32).hops:
            keys = torch.cat([torch.arange(run.start, run.stop) for run in hop.key_positions])
            assert hop.mask.additive is not None
            found[:, :, hop.query_positions[:, None], keys] = hop.mask.additive
            if hop.blind is not None:
                assert torch.equal(hop.blind, hop.mask.additive.isinf().all(-1))
    assert torch.equal(found, whole)


def test_the_fused_kernel_is_the_formula() -> None:
    query, key, value, grad = _inputs(Sight("causal", True), torch.float32)
    query, key, value, grad = (tensor.transpose(1, 2) for tensor in (query, key, value, grad))
    for ring in _rings(2):
        for hop in Sight("causal", True).mask(RingMasks(ring), torch.float32).hops:
            if hop.blind is None or bool(hop.blind.all()):
                continue
            rows, columns = hop.query_positions, torch.cat([torch.arange(r.start, r.stop) for r in hop.key_positions])
            q, k, v, g = query[:, :, rows], key[:, :, columns], value[:, :, columns], grad[:, :, rows]
            seen = ~hop.blind.unsqueeze(-1)
            out, log_sum = InTheOpen().forward(q, k, v, hop)
            fused, fused_log_sum = CpuFlash().forward(q, k, v, hop)
            torch.testing.assert_close(fused * seen, out.nan_to_num() * seen, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(fused_log_sum.masked_fill(hop.blind, 0), log_sum.masked_fill(hop.blind, 0))
            g = g * seen
            final = log_sum.masked_fill(hop.blind, 0.0)
            for a, b in zip(
                CpuFlash().backward(g, q, k, v, fused * seen, final, hop),
                InTheOpen().backward(g, q, k, v, fused * seen, final, hop),
                strict=True,
            ):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_of_accelerators_gives_the_shapes_that_are_merged(masked: bool) -> None:
    """On torch's meta device: shapes and arguments alone. Its values need a GPU."""
    query, key = torch.empty(2, 4, 5, 8, device="meta"), torch.empty(2, 2, 7, 8, device="meta")
    additive = torch.empty(2, 1, 5, 7, device="meta") if masked else None
    hop = Hop(slice(None), slice(None), Mask(additive), None, torch.arange(5), (range(7),))
    out, log_sum = CudaEfficient().forward(query, key, key, hop)
    assert (out.shape, log_sum.shape, log_sum.dtype) == (query.shape, query.shape[:-1], torch.float32)
    gradients = CudaEfficient().backward(out, query, key, key, out, log_sum, hop)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, key.shape]
