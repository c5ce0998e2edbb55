"""DS in Triton: value and gradient of paired rows, in three launches forward and one backward.

Why it looks as it does:
- A row of features (kilobytes) stays in L1 while a program works on it, so `measure` reads it
  again rather than keep it, and rows may be of any length. What the gradient needs of a whole row,
  its norms, is saved, as is the mean midpoint of "sq", by a launch before: `gradient` then works on
  any part of a row alone, and no array of the size of the features is made but the gradient itself.
- `gradient` is also the backward pass of global average pooling (`pooling_triton`): a position of
  the map is written like the next, and DS between vectors is a map of one position.
- Nothing fuses to a multiply-add but what says so (`OPTIONS`): f * a - g * b, fused, is the
  rounding error of g * b where f = g and a = b, and DS must be 0 there, to the last bit.
- No atomics and nothing read by the host: the same bits every time, and no synchronization.

Offsets of rows are 64-bit, those inside a row 32-bit. The launches are in `distance_ops`.
"""

from typing import Any

import triton
import triton.language as tl

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}  # of every launch
# What `measure` keeps of each pair, the value first.
STATISTICS = {"l2": 1, "relative": 2, "cosine": 3, "js": 7, "mse": 1, "sq": 2}

TINY = 1e-12  # as in `distance`, which imports this one
_TINY = tl.constexpr(TINY)


# --- values ---------------------------------------------------------------------------------------


@triton.jit
def _row(x_ptr, row, size):  # type: ignore[no-untyped-def]
    return x_ptr + row.to(tl.int64) * size


@triton.jit
def _load(at, inside):  # type: ignore[no-untyped-def]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _inverse(norm):  # type: ignore[no-untyped-def]
    """1 / norm, and 1 for a zero vector, which stays as it is: it has no direction."""
    return 1.0 / tl.where(norm == 0.0, 1.0, norm)


@triton.jit
def _half_log_ratio(f, g, top_f, top_g, sum_f, sum_g):  # type: ignore[no-untyped-def]
    """log(q/p) / 2 of the softmaxes of logits f and g; what is nearly equal is subtracted first."""
    return ((g - f) - (top_g - top_f) - (sum_g - sum_f)) * 0.5


@triton.jit
def _js_shape(x):  # type: ignore[no-untyped-def]
    """log(p/m), log(q/m) and x tanh x - log cosh x, where x = log(q/p) / 2 and m = (p + q) / 2.

    The first two are -+x - log cosh x. The third times m is the term of JS. Where x is small, terms
    of first order cancel: there, series; else everything is written in exp(-2|x|) <= 1.
    """
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    rest = tl.log((1.0 + decay) * 0.5)  # log cosh x - |x|
    s = x * x
    cosh = s * (1 / 2 + s * (-1 / 12 + s * (1 / 45 - s * (17 / 2520))))
    term = s * (1 / 2 + s * (-1 / 4 + s * (1 / 9 - s * (17 / 360))))
    near = size < 0.25
    log_p = tl.where(near, -x - cosh, -(x + size) - rest)
    log_q = tl.where(near, x - cosh, (x - size) - rest)
    return log_p, log_q, tl.where(near, term, -2.0 * size * decay / (1.0 + decay) - rest)


@triton.jit
def _maximum(row_ptr, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + lane < size
        x = tl.load(row_ptr + start + lane, mask=inside, other=float("-inf")).to(tl.float32)
        top = tl.maximum(top, x)
    return tl.max(top, 0)


@triton.jit
def _log_sum(row_ptr, top, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """log sum exp(x - top)"""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + lane < size
        x = _load(row_ptr + start + lane, inside)
        total += tl.where(inside, tl.exp(x - top), 0.0)
    return tl.log(tl.sum(total, 0))


@triton.jit(do_not_specialize=["m", "units"])
def center(  # type: ignore[no-untyped-def]
    f_ptr,  # (m or more, D)
    g_ptr,  # (m, D)
    center_ptr,  # (D,) float32
    m,
    units,  # D = units * VEC
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The mean of all midpoints (f + g) / 2: some columns a program, many rows at once."""
    size = units * VEC
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, m, ROWS):
        rows = start + lane
        inside = (rows < m)[:, None] & (at < size)[None, :]
        place = rows.to(tl.int64)[:, None] * size + at[None, :]
        total += (_load(f_ptr + place, inside) + _load(g_ptr + place, inside)) * 0.5
    tl.store(center_ptr + at, tl.sum(total, 0) / m.to(tl.float32), mask=at < size)


@triton.jit(do_not_specialize=["m", "units"])
def measure(  # type: ignore[no-untyped-def]
    f_ptr,  # (m or more, D)
    g_ptr,  # (m, D)
    stats_ptr,  # (STATISTICS, m) float32; of "sq" behind the center (D,)
    m,
    units,  # D = units * VEC: what the compiler knows to divide D makes its accesses wide
    KIND: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One pair a program: its distance, and what the gradient needs of the whole of its rows."""
    i = tl.program_id(0)
    size = units * VEC
    f_row, g_row = _row(f_ptr, i, size), _row(g_ptr, i, size)
    center_ptr = stats_ptr
    if KIND == "sq":
        stats_ptr += size
    stats_ptr += i
    lane = tl.arange(0, BLOCK)
    a = tl.zeros((BLOCK,), tl.float32)
    b = tl.zeros((BLOCK,), tl.float32)
    if KIND == "l2" or KIND == "mse":
        for start in range(0, size, BLOCK):
            inside = start + lane < size
            d = _load(f_row + start + lane, inside) - _load(g_row + start + lane, inside)
            a = tl.fma(d, d, a)
        square = tl.sum(a, 0)
        tl.store(stats_ptr, square / size.to(tl.float32) if KIND == "mse" else tl.sqrt(square))
    elif KIND == "relative":
        next_row = _row(f_ptr, (i + 1) % m, size)
        for start in range(0, size, BLOCK):
            inside = start + lane < size
            f = _load(f_row + start + lane, inside)
            d = f - _load(g_row + start + lane, inside)
            e = f - _load(next_row + start + lane, inside)
            a = tl.fma(d, d, a)
            b = tl.fma(e, e, b)
        tl.store(stats_ptr, tl.sqrt(tl.sum(a, 0)))
        tl.store(stats_ptr + m, tl.sqrt(tl.sum(b, 0)))
    elif KIND == "sq":
        for start in range(0, size, BLOCK):
            inside = start + lane < size
            f, g = _load(f_row + start + lane, inside), _load(g_row + start + lane, inside)
            d = f - g
            e = (f + g) * 0.5 - _load(center_ptr + start + lane, inside)
            a = tl.fma(d, d, a)
            b = tl.fma(e, e, b)
        tl.store(stats_ptr, tl.sum(a, 0))
        tl.store(stats_ptr + m, 2.0 * tl.sum(b, 0))
    elif KIND == "cosine":
        for start in range(0, size, BLOCK):
            inside = start + lane < size
            f, g = _load(f_row + start + lane, inside), _load(g_row + start + lane, inside)
            a = tl.fma(f, f, a)
            b = tl.fma(g, g, b)
        norm_f, norm_g = tl.sqrt(tl.sum(a, 0)), tl.sqrt(tl.sum(b, 0))
        inverse_f, inverse_g = _inverse(norm_f), _inverse(norm_g)
        a = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, size, BLOCK):
            inside = start + lane < size
            f, g = _load(f_row + start + lane, inside), _load(g_row + start + lane, inside)
            d = f * inverse_f - g * inverse_g
            a = tl.fma(d, d, a)
        tl.store(stats_ptr, 0.5 * tl.sum(a, 0))
        tl.store(stats_ptr + m, norm_f)
        tl.store(stats_ptr + 2 * m, norm_g)
    else:
        top_f, top_g = _maximum(f_row, size, BLOCK), _maximum(g_row, size, BLOCK)
        sum_f, sum_g = _log_sum(f_row, top_f, size, BLOCK), _log_sum(g_row, top_g, size, BLOCK)
        value = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, size, BLOCK):
            inside = start + lane < size
            f, g = _load(f_row + start + lane, inside), _load(g_row + start + lane, inside)
            log_p, log_q, term = _js_shape(_half_log_ratio(f, g, top_f, top_g, sum_f, sum_g))
            p, q = tl.exp(f - top_f - sum_f), tl.exp(g - top_g - sum_g)
            a += tl.where(inside, p * log_p, 0.0)
            b += tl.where(inside, q * log_q, 0.0)
            value += tl.where(inside, (p + q) * 0.5 * term, 0.0)
        tl.store(stats_ptr, tl.sum(value, 0))
        tl.store(stats_ptr + m, top_f)
        tl.store(stats_ptr + 2 * m, sum_f)
        tl.store(stats_ptr + 3 * m, top_g)
        tl.store(stats_ptr + 4 * m, sum_g)
        tl.store(stats_ptr + 5 * m, tl.sum(a, 0))
        tl.store(stats_ptr + 6 * m, tl.sum(b, 0))


@triton.jit
def _mean(x_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        total += _load(x_ptr + start + lane, start + lane < n)
    return tl.sum(total, 0) / n.to(tl.float32)


@triton.jit
def _scale(between):  # type: ignore[no-untyped-def]
    return tl.where(between < _TINY, _TINY, between)  # NaN stays


@triton.jit(do_not_specialize=["m", "statistics"])
def finish(stats_ptr, value_ptr, m, statistics, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mean over pairs; for "relative" and "sq" the mean of the scale too, behind all rows."""
    value = _mean(stats_ptr, m, BLOCK)
    between = 0.0
    if KIND == "relative" or KIND == "sq":
        between = _mean(stats_ptr + m, m, BLOCK)
        value = value / _scale(between)
    tl.store(stats_ptr + statistics * m, between)
    tl.store(value_ptr, value)


# --- gradient -------------------------------------------------------------------------------------


@triton.jit
def _pair_gradient(  # type: ignore[no-untyped-def]
    f_ptr, g_ptr, stats_ptr, value_ptr, share, i, m, size, at, inside, clean,
    statistics, KIND: tl.constexpr, DETACH: tl.constexpr,
):  # fmt: skip
    """Gradient of `share` * sum_i distance_i in the row of f (clean) or of g, in columns `at`."""
    f = _load(_row(f_ptr, i, size) + at, inside)
    g = _load(_row(g_ptr, i, size) + at, inside)
    center_ptr = stats_ptr + at
    if KIND == "sq":
        stats_ptr += size
    stats_ptr += i
    first = tl.load(stats_ptr)
    sign = tl.where(clean, 1.0, -1.0)
    if KIND == "l2":
        grad = (f - g) * (sign * share * _inverse(first))
    elif KIND == "mse":
        grad = (f - g) * (2.0 * sign * share / size.to(tl.float32))
    elif KIND == "relative":
        between = tl.load(stats_ptr - i + statistics * m)
        share /= _scale(between)
        grad = (f - g) * (sign * share * _inverse(first))
        if not DETACH:  # noqa: SIM102  (a constant for the compiler, a value for the kernel)
            if clean & (between >= _TINY):
                ahead, behind = (i + 1) % m, (i + m - 1) % m
                ahead_f = _load(_row(f_ptr, ahead, size) + at, inside)
                behind_f = _load(_row(f_ptr, behind, size) + at, inside)
                to_ahead = (f - ahead_f) * _inverse(tl.load(stats_ptr + m))
                to_behind = (f - behind_f) * _inverse(tl.load(stats_ptr - i + m + behind))
                grad -= (to_ahead + to_behind) * (share * tl.load(value_ptr))
    elif KIND == "sq":
        between = tl.load(stats_ptr - i + statistics * m)
        share *= 2.0 / _scale(between)
        grad = (f - g) * (sign * share)
        if between >= _TINY:
            away = (f + g) * 0.5 - _load(center_ptr, inside)
            grad -= away * (share * tl.load(value_ptr))
    elif KIND == "cosine":
        norm_f, norm_g = tl.load(stats_ptr + m), tl.load(stats_ptr + 2 * m)
        inverse_f, inverse_g = _inverse(norm_f), _inverse(norm_g)
        difference = (f * inverse_f - g * inverse_g) * sign
        own = tl.where(clean, f * inverse_f, g * inverse_g)
        # Of the difference, the part along the own direction does not count: the distance, for
        # that is 1 - cos; all of it where the other has no direction.
        away = tl.where(tl.where(clean, norm_g, norm_f) == 0.0, 1.0, first)
        grad = (difference - away * own) * (share * tl.where(clean, inverse_f, inverse_g))
    else:
        top_f, sum_f = tl.load(stats_ptr + m), tl.load(stats_ptr + 2 * m)
        top_g, sum_g = tl.load(stats_ptr + 3 * m), tl.load(stats_ptr + 4 * m)
        log_p, log_q, _ = _js_shape(_half_log_ratio(f, g, top_f, top_g, sum_f, sum_g))
        mean = tl.load(stats_ptr + tl.where(clean, 5, 6) * m)
        own = tl.where(clean, f - top_f - sum_f, g - top_g - sum_g)
        weight = tl.exp(own) * (0.5 * share)
        grad = (tl.where(clean, log_p, log_q) - mean) * weight
    return grad


@triton.jit(do_not_specialize=["n", "m", "first", "units", "blocks", "positions", "statistics"])
def gradient(  # type: ignore[no-untyped-def]
    f_ptr,  # (n, D)
    g_ptr,  # (m, D), m <= n
    stats_ptr,  # of measure and finish
    value_ptr,  # () float32
    grad_ds_ptr,  # () float32
    grad_features_ptr,  # (n + m, D) float32: rows of f, then of g
    out_ptr,  # (rows, positions, D): for rows first, first + 1, ... of f and g
    n,
    m,
    first,
    units,  # D = units * VEC
    blocks,  # programs a row
    positions,
    statistics,
    KIND: tl.constexpr,
    DETACH: tl.constexpr,  # for "relative": no gradient through the scale
    DS_F: tl.constexpr,  # DS reaches f
    DS_G: tl.constexpr,
    FEATURES: tl.constexpr,  # there is a gradient of the features
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the positions whose means are the features: one part of one row a program."""
    program = tl.program_id(0)
    place = program // blocks
    row = first + place
    size = units * VEC
    at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    grad = tl.zeros((BLOCK,), tl.float32)
    if DS_F or DS_G:
        clean = row < n
        i = tl.where(clean, row, row - n)
        reached = i < m
        if not DS_F:
            reached = reached & (row >= n)
        if not DS_G:
            reached = reached & clean
        if reached:
            share = tl.load(grad_ds_ptr) / m.to(tl.float32)
            grad = _pair_gradient(
                f_ptr, g_ptr, stats_ptr, value_ptr, share, i, m, size, at, inside, clean,
                statistics, KIND, DETACH,
            )  # fmt: skip
    if FEATURES:
        grad += _load(_row(grad_features_ptr, row, size) + at, inside)
    value = (grad / positions.to(tl.float32)).to(out_ptr.dtype.element_ty)
    out = _row(out_ptr, place, positions.to(tl.int64) * size) + at
    for position in range(positions):
        tl.store(out + position * size, value, mask=inside)


__all__ = ["OPTIONS", "STATISTICS", "TINY", "center", "finish", "gradient", "measure"]
