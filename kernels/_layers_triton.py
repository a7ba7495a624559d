# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernels of `rlkit.kernels.layers` take one pass over memory in each direction."""

from __future__ import annotations

from rlkit.runtime.triton import tl, triton


@triton.jit
def rms_norm_forward(
    x_ptr, weight_ptr, y_ptr, rstd_ptr, num_rows, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Set y = w round(x / rms), rounded twice as in transformers; keep 1 / rms in float32."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
    places = rows[:, None] * D + columns[None, :]
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    normal = (x * rstd[:, None]).to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + places, (normal * weight[None, :]).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(rstd_ptr + rows, rstd, mask=rows < num_rows)


@triton.jit
def rms_norm_backward(
    dy_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, num_rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Set dx = r (g - n mean(g n)) with g = w dy, n = r x."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
    places = rows[:, None] * D + columns[None, :]
    rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
    normal = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32) * rstd
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    g = tl.load(dy_ptr + places, mask=inside, other=0.0).to(tl.float32) * weight[None, :]
    mean = tl.sum(g * normal, axis=1)[:, None] / D
    dx = rstd * (g - normal * mean)
    tl.store(dx_ptr + places, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_weight_backward(
    dy_ptr, x_ptr, rstd_ptr, sums_ptr, num_rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sum dy round(x / rms) over the TILES x ROWS rows of a program, for a block of columns."""
    part = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for i in range(TILES):
        rows = (part * TILES + i) * ROWS + tl.arange(0, ROWS)
        inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
        places = rows[:, None] * D + columns[None, :]
        rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
        normal = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32) * rstd
        normal = normal.to(x_ptr.dtype.element_ty).to(tl.float32)
        dy = tl.load(dy_ptr + places, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(dy * normal, axis=0)
    tl.store(sums_ptr + part * D + columns, total, mask=columns < D)


@triton.jit
def sum_uses(grad_ptr, order_ptr, starts_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the rows of `grad` at the places of one row's uses, in their order, in float32."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)):
        place = tl.load(order_ptr + i)
        total += tl.load(grad_ptr + place * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(
            tl.float32
        )
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * WIDTH + columns, out, mask=columns < WIDTH)


@triton.jit
def swiglu_forward(
    gate_ptr, up_ptr, y_ptr, size, WIDTH: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr
):
    """Set y = round(silu(gate)) up; gate and up have SKIP other numbers after each row."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    spread = places + places // WIDTH * SKIP
    gate = tl.load(gate_ptr + spread, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + spread, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + places, (silu * up).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(
    dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, size,
    WIDTH: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Set dup = dy silu(gate), dgate = dy up s (1 + gate (1 - s)) with s = sigmoid(gate)."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    spread = places + places // WIDTH * SKIP
    dy = tl.load(dy_ptr + places, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + spread, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + spread, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    dgate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(dgate_ptr + spread, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + spread, (dy * gate * sigmoid).to(dup_ptr.dtype.element_ty), mask=inside)
