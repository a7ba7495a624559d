# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernels of the fused logps; the mathematics is in docs/kernels.md.

Exponents are in units of log 2: z here is a logit times log2(e), and exponentials are exp2.
"""

from __future__ import annotations

from rlkit.runtime.triton import tl, triton

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def scaled_logits(x, gain, cap, SOFTCAP: tl.constexpr):
    """log2(e) logits of products x, and the softcap's slope there (x itself when there is none).

    Without a softcap, gain = log2(e) logit_scale / temperature. With one, cap tanh(gain x) in the
    same unit: tanh through exp2, 1e-7 of the cap accurate, as float32 logits near it are.
    """
    if SOFTCAP:
        tanh = 1.0 - 2.0 / (tl.exp2(x * (2.0 * gain * LOG2_E)) + 1.0)
        return cap * tanh, 1.0 - tanh * tanh
    else:
        return x * gain, x


@triton.jit
def target_logits(
    hidden, weight, targets, bias, out, stride_h, stride_w, D, gain, cap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[i] = log2(e) times the logit of row i's target: the anchor of its exponentials."""
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(targets + row).to(tl.int64)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        h = tl.load(hidden + row * stride_h + cols, mask=cols < D, other=0.0)
        w = tl.load(weight + y * stride_w + cols, mask=cols < D, other=0.0)
        acc += h.to(tl.float32) * w.to(tl.float32)
    x = tl.sum(acc, 0)
    if BIAS:
        x += tl.load(bias + y).to(tl.float32)
    z, _ = scaled_logits(x, gain, cap, SOFTCAP)
    tl.store(out + row, z)


@triton.jit
def _finish_tile(
    acc, row0, col0, e_desc, anchors, targets, bias, sums, moments, alphas, betas, N, V,
    num_col_tiles, col_tile, gain, cap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, STORE: tl.constexpr,
    WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = row0 + tl.arange(0, BLOCK_M)
    cols = col0 + tl.arange(0, BLOCK_N)
    anchor = tl.load(anchors + rows, mask=rows < N, other=0.0)
    y = tl.load(targets + rows, mask=rows < N, other=0).to(tl.int32)
    if BIAS:
        acc += tl.load(bias + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
    z, slope = scaled_logits(acc, gain, cap, SOFTCAP)
    t = z - anchor[:, None]
    keep = (cols[None, :] != y[:, None]) & (cols < V)[None, :]
    if WEIGHTED:
        alpha = tl.load(alphas + rows, mask=rows < N, other=0.0)
        beta = tl.load(betas + rows, mask=rows < N, other=0.0)
        e = tl.where(keep, tl.exp2(t) * (alpha[:, None] + beta[:, None] * t), 0.0)
    else:
        e = tl.where(keep, tl.exp2(t), 0.0)
        out = rows.to(tl.int64) * num_col_tiles + col_tile
        tl.store(sums + out, tl.sum(e, 1), mask=rows < N)
        if ENTROPY:
            tl.store(moments + out, tl.sum(e * t, 1), mask=rows < N)
    if STORE:
        if SOFTCAP:
            e *= slope
        e_desc.store([row0, col0], e.to(tl.bfloat16))


@triton.jit
def exponentials(
    h_desc, w_desc, e_desc, anchors, targets, bias, sums, moments, alphas, betas, N, V, D,
    gain, cap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, STORE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """E[i, v] = exp(z[i, v] - z[i, y_i]) for v != y_i, 0 for v = y_i, from z = h W^T in one pass.

    Writes the row sums of E (with ENTROPY, of E log2 E too) over every tile of words into sums
    (N, tiles), and with STORE, E (times the softcap's slope) in bfloat16. With WEIGHTED, writes
    E (alpha + beta log2 E) instead, and no sums. Tiles, and the order inside one, do not depend on
    N: nor do a row's results.
    """
    rows_tiles = tl.cdiv(N, BLOCK_M)
    col_tiles = tl.cdiv(V, BLOCK_N)
    k_tiles = tl.cdiv(D, BLOCK_K)
    # Flattened with the loop over k, the next tile's loads run under this tile's epilogue.
    for tile in tl.range(tl.program_id(0), rows_tiles * col_tiles, PROGRAMS, flatten=True):
        per_group = GROUP_M * col_tiles
        group = tile // per_group
        group_size = min(rows_tiles - group * GROUP_M, GROUP_M)
        row_tile = group * GROUP_M + (tile % per_group) % group_size
        col_tile = (tile % per_group) // group_size
        row0, col0 = row_tile * BLOCK_M, col_tile * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(k_tiles):
            a = h_desc.load([row0, k * BLOCK_K])
            b = w_desc.load([col0, k * BLOCK_K])
            acc = tl.dot(a, b.T, acc)
        _finish_tile(
            acc, row0, col0, e_desc, anchors, targets, bias, sums, moments, alphas, betas, N, V,
            col_tiles, col_tile, gain, cap, BIAS, SOFTCAP, ENTROPY, STORE, WEIGHTED,
            BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def add_tiles(parts, out, tiles, BLOCK_T: tl.constexpr):
    """out[i] = sum of parts[i, :]: one kernel for every mode, so that all add in one order."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    tl.store(out + row, tl.sum(tl.load(parts + row * tiles + t, mask=t < tiles, other=0.0), 0))


@triton.jit
def directions(
    totals, anchors, scales, product, weight, targets, out, stride_w, stride_out, D, cap,
    SOFTCAP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out = scale (slope_y W_y - (E W) / S) per row, from product = E W and totals S."""
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(targets + row).to(tl.int64)
    scale = tl.load(scales + row)
    inverse = 1.0 / tl.maximum(tl.load(totals + row), 1e-37)
    slope = 1.0
    if SOFTCAP:
        tanh = tl.load(anchors + row) / cap
        slope = 1.0 - tanh * tanh
    for start in range(0, D, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        w = tl.load(weight + y * stride_w + cols, mask=cols < D, other=0.0).to(tl.float32)
        a = tl.load(product + row * D + cols, mask=cols < D, other=0.0)
        d = scale * (slope * w - a * inverse)
        tl.store(out + row * stride_out + cols, d.to(tl.bfloat16), mask=cols < D)
