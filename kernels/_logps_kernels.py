# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernels compute the fused logps; the mathematics is in docs/kernels.md.

Exponents are in units of log 2: z here is a logit times log2(e), and exponentials are exp2.
"""

from __future__ import annotations

from rlkit.runtime.triton import tl, triton

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def scaled_logits(x, gain, cap, SOFTCAP: tl.constexpr):
    """Return log2(e) logits of products x, and the softcap's slope there (x itself without one).

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
    """Set out[i] = log2(e) times the logit of row i's target: the anchor of its exponentials."""
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
def _load_tile(
    source, first, count, k, width, step,
    DESCRIPTORS: tl.constexpr, EVEN_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Load rows first to first + ROWS of a matrix, numbers k to k + BLOCK_K, 0 beyond its width.

    Pointers repeat the last row beyond the matrix, where a mask would cost a register a number.
    """
    if DESCRIPTORS:
        return source.load([first, k])
    else:
        rows = tl.minimum(first + tl.arange(0, ROWS), count - 1).to(tl.int64)
        cols = k + tl.arange(0, BLOCK_K)
        places = source + rows[:, None] * step + cols[None, :]
        if EVEN_K:
            return tl.load(places)
        else:
            return tl.load(places, mask=(cols < width)[None, :], other=0.0)


@triton.jit
def _store_tile(
    e_out, values, row0, col0, N, step,
    DESCRIPTORS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store a tile of E; the columns that its padded rows lack are left out."""
    if DESCRIPTORS:
        e_out.store([row0, col0], values)
    else:
        rows = row0 + tl.arange(0, BLOCK_M)
        cols = col0 + tl.arange(0, BLOCK_N)
        places = e_out + rows.to(tl.int64)[:, None] * step + cols[None, :]
        tl.store(places, values, mask=(rows < N)[:, None] & (cols < step)[None, :])


@triton.jit
def _finish_tile(
    acc, row0, col0, e_out, anchors, targets, bias, sums, moments, shifts, alphas, betas, N, V,
    e_step, num_col_tiles, col_tile, gain, cap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, STORE: tl.constexpr,
    WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = row0 + tl.arange(0, BLOCK_M)
    cols = col0 + tl.arange(0, BLOCK_N)
    anchor = tl.load(anchors + rows, mask=rows < N, other=0.0)
    y = tl.load(targets + rows, mask=rows < N, other=0).to(tl.int32)
    out = rows.to(tl.int64) * num_col_tiles + col_tile
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
        tl.store(sums + out, tl.sum(e, 1), mask=rows < N)
        if ENTROPY:
            tl.store(moments + out, tl.sum(e * t, 1), mask=rows < N)
    if STORE:
        if SOFTCAP:
            e *= slope
        if SHIFTED:
            # The largest of the row in this tile becomes a number in (2^13, 2^14].
            top = tl.max(tl.where(keep, t, -110.0), 1)
            shift = tl.ceil(tl.minimum(tl.maximum(top, -110.0), 110.0)) - 14.0
            tl.store(shifts + out, shift, mask=rows < N)
            e *= tl.exp2(-shift)[:, None]
            stored = e.to(tl.float16)
        else:
            stored = e.to(tl.bfloat16)
        _store_tile(e_out, stored, row0, col0, N, e_step, DESCRIPTORS, BLOCK_M, BLOCK_N)


@triton.jit
def exponentials(
    h_in, w_in, e_out, anchors, targets, bias, sums, moments, shifts, alphas, betas, N, V, D8,
    h_step8, w_step8, e_step8, gain, cap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, STORE: tl.constexpr,
    WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr, DESCRIPTORS: tl.constexpr,
    EVEN_K: tl.constexpr, FLATTEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Compute E[i, v] = exp(z[i, v] - z[i, y_i]), 0 for v = y_i, from z = h W^T in one pass.

    It writes the row sums of E over every tile of words into sums (N, tiles). With ENTROPY it also
    writes those of E log2 E. STORE keeps E (times the softcap's slope) in bfloat16. SHIFTED stores
    float16 instead: 2^-shift E, with the shift of each row and tile in shifts (N, tiles). With
    WEIGHTED, it writes E (alpha + beta log2 E) instead, and no sums. Tiles, and the order inside
    one, do not depend on N: nor do a row's results.

    The matrices are descriptors with DESCRIPTORS, else pointers. D8 and the steps between rows
    count blocks of 8 numbers, so that the compiler knows that 16 bytes can be loaded at once.
    """
    D = D8 * 8
    rows_tiles = tl.cdiv(N, BLOCK_M)
    col_tiles = tl.cdiv(V, BLOCK_N)
    k_tiles = tl.cdiv(D, BLOCK_K)
    # Flattened with the loop over k, the next tile's loads run under this tile's epilogue.
    for tile in tl.range(tl.program_id(0), rows_tiles * col_tiles, PROGRAMS, flatten=FLATTEN):
        per_group = GROUP_M * col_tiles
        group = tile // per_group
        group_size = min(rows_tiles - group * GROUP_M, GROUP_M)
        row_tile = group * GROUP_M + (tile % per_group) % group_size
        col_tile = (tile % per_group) // group_size
        row0, col0 = row_tile * BLOCK_M, col_tile * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(k_tiles):
            a = _load_tile(
                h_in, row0, N, k * BLOCK_K, D, h_step8 * 8, DESCRIPTORS, EVEN_K, BLOCK_M, BLOCK_K
            )
            b = _load_tile(
                w_in, col0, V, k * BLOCK_K, D, w_step8 * 8, DESCRIPTORS, EVEN_K, BLOCK_N, BLOCK_K
            )
            acc = tl.dot(a, b.T, acc)
        _finish_tile(
            acc, row0, col0, e_out, anchors, targets, bias, sums, moments, shifts, alphas, betas,
            N, V, e_step8 * 8, col_tiles, col_tile, gain, cap, BIAS, SOFTCAP, ENTROPY, STORE,
            WEIGHTED, SHIFTED, DESCRIPTORS, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def level_tiles(
    e, shifts, levels, V, tiles, step8,
    TILE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bring the tiles of one row of E from their own shifts to the largest, kept in levels."""
    row = tl.program_id(0).to(tl.int64)
    shifts += row * tiles
    t = tl.arange(0, BLOCK_T)
    level = tl.max(tl.load(shifts + t, mask=t < tiles, other=-1000.0), 0)
    tl.store(levels + row, level)
    for first in range(0, tiles, BLOCK // TILE):
        part = first + tl.arange(0, BLOCK // TILE)
        shift = tl.load(shifts + part, mask=part < tiles, other=0.0)
        cols = part[:, None] * TILE + tl.arange(0, TILE)[None, :]
        places = e + row * (step8 * 8) + cols
        x = tl.load(places, mask=cols < V, other=0.0).to(tl.float32)
        x *= tl.exp2(shift - level)[:, None]
        tl.store(places, x.to(tl.float16), mask=cols < V)


@triton.jit
def add_tiles(parts, out, tiles, BLOCK_T: tl.constexpr):
    """Set out[i] = sum of parts[i, :]: one kernel for every mode, so that all add in one order."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    tl.store(out + row, tl.sum(tl.load(parts + row * tiles + t, mask=t < tiles, other=0.0), 0))


@triton.jit
def directions(
    totals, anchors, scales, levels, product, weight, targets, out, stride_w, stride_out, D, cap,
    SOFTCAP: tl.constexpr, SHIFTED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Set out = scale (slope_y W_y - (E W) / S) per row, from product = E W and totals S.

    With SHIFTED, product is 2^-level E W.
    """
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(targets + row).to(tl.int64)
    scale = tl.load(scales + row)
    inverse = 1.0 / tl.maximum(tl.load(totals + row), 1e-37)
    if SHIFTED:
        inverse *= tl.exp2(tl.load(levels + row))
    slope = 1.0
    if SOFTCAP:
        tanh = tl.load(anchors + row) / cap
        slope = 1.0 - tanh * tanh
    for start in range(0, D, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        w = tl.load(weight + y * stride_w + cols, mask=cols < D, other=0.0).to(tl.float32)
        a = tl.load(product + row * D + cols, mask=cols < D, other=0.0)
        d = scale * (slope * w - a * inverse)
        tl.store(out + row * stride_out + cols, d.to(out.dtype.element_ty), mask=cols < D)
