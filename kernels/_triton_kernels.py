# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernels of `_logps_triton`; the mathematics is in docs/kernels.md.

Exponents are in units of log 2: z here is a logit times log2(e), and exponentials are exp2.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
    acc, row0, col0, e_desc, anchors, targets, bias, sums, moments, N, V, num_col_tiles, col_tile,
    gain, cap,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Exponentials of one block of products: stored as bfloat16, row sums in float32."""
    rows = row0 + tl.arange(0, BLOCK_M)
    cols = col0 + tl.arange(0, WIDTH)
    anchor = tl.load(anchors + rows, mask=rows < N, other=0.0)
    y = tl.load(targets + rows, mask=rows < N, other=0).to(tl.int32)
    if BIAS:
        acc += tl.load(bias + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
    z, slope = scaled_logits(acc, gain, cap, SOFTCAP)
    t = z - anchor[:, None]
    keep = (cols[None, :] != y[:, None]) & (cols < V)[None, :]
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
    h_desc, w_desc, e_desc, anchors, targets, bias, sums, moments, N, V, D, gain, cap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, STORE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    SPLIT: tl.constexpr, PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """E[i, v] = exp(z[i, v] - z[i, y_i]) for v != y_i, 0 for v = y_i, from z = h W^T in one pass.

    Writes the row sums of E (and of E log2 E) over every tile of words: sums (N, tiles), and with
    STORE, E itself. Tiles, and the order inside one, do not depend on N: nor do a row's results.
    """
    rows_tiles = tl.cdiv(N, BLOCK_M)
    col_tiles = tl.cdiv(V, BLOCK_N)
    k_tiles = tl.cdiv(D, BLOCK_K)
    for tile in tl.range(tl.program_id(0), rows_tiles * col_tiles, PROGRAMS, flatten=FLATTEN):
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
        if SPLIT:  # halves need half the registers and half the staging memory
            halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            _finish_tile(
                left, row0, col0, e_desc, anchors, targets, bias, sums, moments, N, V,
                2 * col_tiles, 2 * col_tile, gain, cap, BLOCK_M, BLOCK_N // 2,
                BIAS, SOFTCAP, ENTROPY, STORE,
            )  # fmt: skip
            _finish_tile(
                right, row0, col0 + BLOCK_N // 2, e_desc, anchors, targets, bias, sums, moments,
                N, V, 2 * col_tiles, 2 * col_tile + 1, gain, cap, BLOCK_M, BLOCK_N // 2,
                BIAS, SOFTCAP, ENTROPY, STORE,
            )  # fmt: skip
        else:
            _finish_tile(
                acc, row0, col0, e_desc, anchors, targets, bias, sums, moments, N, V,
                col_tiles, col_tile, gain, cap, BLOCK_M, BLOCK_N, BIAS, SOFTCAP, ENTROPY, STORE,
            )  # fmt: skip


@triton.jit
def finish_rows(
    sums, moments, anchors, product, weight, targets, logps, entropies, doubts, directions, totals,
    stride_w, stride_d, D, tiles, scale, cap,
    SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, JACOBIAN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Per row: S = sum of E; logps = -log1p(S), 1 - p_y = S / (1 + S), H, and the direction
    scale (slope_y W_y - (E W) / S)."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    s = tl.sum(tl.load(sums + row * tiles + t, mask=t < tiles, other=0.0), 0)
    # Kahan's log1p: log(1 + s) corrected for the rounding of 1 + s.
    u = 1.0 + s
    log1p = tl.where(u == 1.0, s, tl.log(u) * (s / tl.where(u == 1.0, 1.0, u - 1.0)))
    tl.store(totals + row, s)
    tl.store(logps + row, -log1p)
    tl.store(doubts + row, s / u)
    if ENTROPY:
        moment = tl.sum(tl.load(moments + row * tiles + t, mask=t < tiles, other=0.0), 0)
        tl.store(entropies + row, log1p - LN_2 * (moment / u))
    if JACOBIAN:
        y = tl.load(targets + row).to(tl.int64)
        slope = 1.0
        if SOFTCAP:
            tanh = tl.load(anchors + row) / cap
            slope = 1.0 - tanh * tanh
        inverse = 1.0 / tl.maximum(s, 1e-37)
        for start in range(0, D, BLOCK_D):
            cols = start + tl.arange(0, BLOCK_D)
            w = tl.load(weight + y * stride_w + cols, mask=cols < D, other=0.0).to(tl.float32)
            a = tl.load(product + row * D + cols, mask=cols < D, other=0.0)
            direction = scale * (slope * w - a * inverse)
            tl.store(directions + row * stride_d + cols, direction.to(tl.bfloat16), mask=cols < D)
