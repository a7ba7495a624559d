"""The packed row: what is in it, and attention over it against each row of the batch alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import grouped_batch, make_batch, random_ids
from torch import Tensor, nn
from transformers import LlamaConfig

from rlkit.models.attention import attend, take
from rlkit.models.hidden import prepare
from rlkit.models.layout import Packing, Padded, padded_of, ragged_of
from rlkit.models.packing import PackedRow, Segment, Span, pack
from rlkit.types import RolloutBatch

CPU = torch.device("cpu")
NO_MODULE = nn.Identity()


def three_groups() -> RolloutBatch:
    return grouped_batch(
        prefix=20, rests=[3, 7, 5], group_sizes=[2, 1, 2], completions=[4, 6, 3, 1, 2]
    )


def test_shared_prompts_are_in_the_row_once() -> None:
    row = pack(three_groups(), share=True)
    ids = random_ids
    expected = [
        (Span(0, 20), ids(20, seed=0)),  # what all prompts begin with
        (Span(20, 3), ids(3, seed=10)),  # the rest of prompt 0
        (Span(23, 3), ids(4, seed=50)[:3]),  # its completions, without their last tokens
        (Span(26, 5), ids(6, seed=51)[:5]),
        (Span(31, 9), ids(7, seed=11) + ids(3, seed=52)[:2]),  # alone: one segment
        (Span(40, 5), ids(5, seed=12)),
        (Span(45, 1), ids(2, seed=54)[:1]),  # the completion of one token needs no segment
    ]
    assert [s.own for s in row.segments] == [span for span, _ in expected]
    assert row.ids.tolist() == [token for _, tokens in expected for token in tokens]
    prefix = Span(0, 20)
    assert [s.before for s in row.segments] == [
        (),
        (prefix,),
        (prefix, Span(20, 3)),
        (prefix, Span(20, 3)),
        (prefix,),
        (prefix,),
        (prefix, Span(40, 5)),
    ]
    assert row.positions[20:31].tolist() == [20, 21, 22, 23, 24, 25, 23, 24, 25, 26, 27]
    # Both samples of prompt 0 are predicted from its last token first.
    assert row.predictors[:10].tolist() == [22, 23, 24, 25, 22, 26, 27, 28, 29, 30]
    assert row.predictors[10:].tolist() == [37, 38, 39, 44, 44, 45]


def test_without_sharing_every_row_is_a_segment() -> None:
    row = pack(three_groups(), share=False)
    assert [s.own.length for s in row.segments] == [26, 28, 29, 25, 26]
    assert not any(s.before for s in row.segments)
    assert row.positions[26:54].tolist() == list(range(28))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(3, 4), min_size=1, max_size=5), st.integers(0, 4)),
        min_size=1,
        max_size=6,
    ).filter(lambda rows: any(n for _, n in rows)),
    st.booleans(),
    st.integers(0, 20),
    st.sampled_from([0, 1, 7]),  # a third of the ids are an environment's, or none
)
def test_every_token_sees_its_own_row_at_its_own_place(
    rows: list[tuple[list[int], int]], share: bool, prefix: int, environment: int
) -> None:
    """Whatever is shared, and whoever said it: a sampled token's keys are all tokens before it."""
    prompts = [[5] * prefix + prompt for prompt, _ in rows]
    completions = [random_ids(n, seed=i) for i, (_, n) in enumerate(rows)]
    batch = make_batch(prompts, completions)
    theirs = batch.completion_mask & (batch.completion_ids % 3 == environment)
    batch = replace(batch, completion_mask=batch.completion_mask & ~theirs, spliced=theirs)
    row = pack(batch, share=share)
    visible = visible_tokens(row)
    found = iter(row.predictors.tolist())
    for prompt, completion, sampled in zip(
        prompts, completions, batch.completion_mask, strict=True
    ):
        for t in sampled.nonzero().flatten().tolist():
            token = next(found)
            seen = visible[token]
            assert row.ids[seen].tolist() == prompt + completion[:t]
            assert row.positions[seen].tolist() == list(range(len(seen)))
    assert next(found, None) is None
    assert sum(s.own.length for s in row.segments) == len(row)


def visible_tokens(row: PackedRow) -> list[list[int]]:
    """Of each token the tokens that it attends to, in order."""
    result = []
    for segment in row.segments:
        before = [token for span in segment.before for token in span_tokens(span)]
        own = span_tokens(segment.own)
        result += [before + own[: i + 1] for i in range(len(own))]
    return result


def span_tokens(span: Span) -> list[int]:
    return list(range(span.start, span.start + span.length))


def attention_oracle(
    row: PackedRow, q: Tensor, k: Tensor, v: Tensor, *, window: int | None, softcap: float | None
) -> Tensor:
    """One query after the other, in a loop."""
    groups = q.shape[1] // k.shape[1]
    out = []
    for token, seen in enumerate(visible_tokens(row)):
        keys = seen if window is None else seen[-window:]
        heads = []
        for head in range(q.shape[1]):
            scores = k[0, head // groups, keys] @ q[0, head, token] / math.sqrt(q.shape[-1])
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            heads.append(scores.softmax(0) @ v[0, head // groups, keys])
        out.append(torch.stack(heads))
    return torch.stack(out)[None]


def inputs(num_tokens: int, *, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q (1, H, T, d), k and v (1, H', T, d)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, num_tokens, 16) for heads in (4, 2, 2)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(device=device, dtype=dtype).requires_grad_() for x in tensors]


def compare(
    row: PackedRow, packing: Packing, *, device: torch.device, dtype: torch.dtype, tolerance: float,
    window: int | None = None, softcap: float | None = None,
) -> None:  # fmt: skip
    """Value and gradients against the oracle in float64 on the same rounded inputs."""
    ours = inputs(len(row), device=device, dtype=dtype)
    truth = [x.detach().cpu().double().requires_grad_() for x in ours]
    q, k, v = ours
    out, _ = attend(
        NO_MODULE, q, k, v, None, packing=packing, sliding_window=window, softcap=softcap
    )
    expected = attention_oracle(row, *truth, window=window, softcap=softcap)
    assert out.shape == expected.shape
    upstream = torch.linspace(-1, 2, out.numel()).reshape(out.shape).to(dtype)
    grads = torch.autograd.grad(out, ours, upstream.to(device))
    true_grads = torch.autograd.grad(expected, truth, upstream.double())
    for actual, wanted in zip((out, *grads), (expected, *true_grads), strict=True):
        error = (actual.cpu().double() - wanted).abs().max()
        assert error < tolerance * wanted.abs().max(), float(error)


def long_rows() -> PackedRow:
    """Completions on both sides of the length from which a segment has a bucket of its own."""
    batch = grouped_batch(
        prefix=30, rests=[5, 9], group_sizes=[3, 2], completions=[300, 20, 17, 3, 270]
    )
    return pack(batch, share=True)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("share", [True, False])
def test_padded_buckets_equal_a_loop(
    share: bool, window: int | None, softcap: float | None
) -> None:
    row = pack(three_groups(), share=share)
    packing = padded_of(
        row.segments, CPU, torch.float64, window=window, softcap=softcap is not None
    )
    tolerance = 1e-12 if softcap is None else 1e-6  # transformers' softmax is float32 there
    compare(
        row, packing, device=CPU, dtype=torch.float64, tolerance=tolerance, window=window,
        softcap=softcap,
    )  # fmt: skip


def test_long_segments_have_buckets_of_their_own() -> None:
    row = long_rows()
    packing = padded_of(row.segments, CPU, torch.float64)
    assert [b.num_segments for b in packing.buckets] == [1, 1, 1, 3, 1, 1]
    compare(row, packing, device=CPU, dtype=torch.float64, tolerance=1e-12)


@pytest.mark.parametrize(("length", "shared"), [(800, True), (2200, False)])
def test_masks_do_not_outgrow_what_sharing_saves(length: int, shared: bool) -> None:
    """16 x 800 x 832 scores fit into 2^26; 16 x 2200 x 2232 do not."""
    batch = make_batch([random_ids(32, seed=0)] * 16, [random_ids(length + 1, seed=1)] * 16)
    config = LlamaConfig(hidden_size=32, num_attention_heads=2)
    row, packing = prepare(config, batch, dtype=torch.float32, share=True)
    assert len(row) == 32 + 16 * length if shared else len(row) == 16 * (32 + length)
    assert isinstance(packing, Padded)
    assert bool(packing.buckets[-1].biases) is shared


def test_a_lone_segment_needs_no_mask() -> None:
    packing = padded_of([Segment(Span(0, 300))], CPU, torch.float32)
    assert isinstance(packing, Padded) and packing.buckets[0].biases == {}


def test_take_is_indexing_with_sums_in_float32() -> None:
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 0, 0, 2, 4, 4])
    upstream = torch.randn(6, 2, 3, dtype=torch.float64)
    assert torch.equal(take(x, index), x[index])
    actual = torch.autograd.grad(take(x, index), x, upstream)[0]
    torch.testing.assert_close(actual, torch.autograd.grad(x[index], x, upstream)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 9, 250])
@pytest.mark.parametrize("rows", ["short", "long", "unshared"])
def test_flash_equals_a_loop(rows: str, window: int | None, dtype: torch.dtype) -> None:
    row = long_rows() if rows == "long" else pack(three_groups(), share=rows == "short")
    cuda = torch.device("cuda", 0)
    tolerance = 0.02 if dtype is torch.bfloat16 else 0.004
    packing = ragged_of(row.segments, cuda)
    compare(row, packing, device=cuda, dtype=dtype, tolerance=tolerance, window=window)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 9])
def test_padded_buckets_equal_a_loop_on_cuda(window: int | None) -> None:
    row, cuda = long_rows(), torch.device("cuda", 0)
    packing = padded_of(row.segments, cuda, torch.float64, window=window)
    compare(row, packing, device=cuda, dtype=torch.float64, tolerance=1e-12, window=window)
