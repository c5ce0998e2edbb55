"""Interleaved 8-bit pixels as Triton tensors of single channels, and back, 128 bits an access.

An image is one flat run of units: groups of 16 pixels, or single pixels. A group is 48 bytes, three
128-bit loads: a thread owns it, and since all twelve words are in its registers, telling channels
apart costs no instruction. Its loads go straight to it: their stride of 48 bytes meets every sector
of a line, within one warp. Only the way out goes through shared memory: there, twelve words (4
pixels of float32, 8 of 16 bits) are three 128-bit stores, by neighbouring threads. Lanes come in
powers of two, so one in four has nothing to store.

For groups, the address and the number of bytes of an image have to be multiples of 16. Single
pixels are loaded byte by byte, and have no such needs.
"""

import triton
import triton.language as tl


@triton.jit
def _split4(x, shape: tl.constexpr):  # type: ignore[no-untyped-def]
    """x (*shape, 4) -> four of `shape`."""
    even, odd = tl.split(x.reshape(shape + (2, 2)))  # noqa: RUF005 (Triton's Python has no star)
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _join4(x0, x1, x2, x3, shape: tl.constexpr):  # type: ignore[no-untyped-def]
    """Four of `shape` -> (*shape, 4)."""
    return tl.join(tl.join(x0, x2), tl.join(x1, x3)).reshape(shape + (4,))  # noqa: RUF005


@triton.jit
def _rows(a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, n: tl.constexpr):  # type: ignore[no-untyped-def]
    """Twelve (n,) -> (n, 4, 4), three rows of four; the fourth row is not to be used."""
    a = _join4(a0, a1, a2, a3, (n,))
    b = _join4(b0, b1, b2, b3, (n,))
    c = _join4(c0, c1, c2, c3, (n,))
    return _join4(a, b, c, c, (n, 4)).permute(0, 2, 1)


@triton.jit
def places(lane: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of eight units of three times `lane` elements, padded to four times: three (1, 32 lane).

    The place of each element, its unit, and whether it is no padding.
    """
    i = tl.arange(0, 32 * lane)[None, :]
    unit, place = i // (4 * lane), i % (4 * lane)
    return 3 * lane * unit + place, unit, place < 3 * lane


@triton.jit
def _level(word, byte: tl.constexpr):  # type: ignore[no-untyped-def]
    return ((word >> (8 * byte)) & 0xFF).to(tl.float32)


@triton.jit
def load(x, left, FAST: tl.constexpr, TILE: tl.constexpr, POLICY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Red, green and blue, float32, of the first `left` units at x: (TILE, 4, 4) or (TILE,)."""
    if not FAST:
        t = tl.arange(0, TILE)
        r = tl.load(x + 3 * t, mask=t < left, other=0)
        g = tl.load(x + (3 * t + 1), mask=t < left, other=0)
        b = tl.load(x + (3 * t + 2), mask=t < left, other=0)
        return r.to(tl.float32), g.to(tl.float32), b.to(tl.float32)
    else:
        x = x.to(tl.pointer_type(tl.uint32))
        t = tl.arange(0, TILE)[:, None]
        at = 12 * t + tl.arange(0, 4)[None, :]
        a = tl.load(x + at, mask=t < left, other=0, eviction_policy=POLICY)
        b = tl.load(x + (at + 4), mask=t < left, other=0, eviction_policy=POLICY)
        c = tl.load(x + (at + 8), mask=t < left, other=0, eviction_policy=POLICY)
        a0, a1, a2, a3 = _split4(a, (TILE,))
        b0, b1, b2, b3 = _split4(b, (TILE,))
        c0, c1, c2, c3 = _split4(c, (TILE,))
        # Words 0, 1, 2 of each four pixels: r g b r, g b r g, b r g b.
        u = _join4(a0, a3, b2, c1, (TILE,))
        v = _join4(a1, b0, b3, c2, (TILE,))
        w = _join4(a2, b1, c0, c3, (TILE,))
        s: tl.constexpr = (TILE, 4)
        r = _join4(_level(u, 0), _level(u, 3), _level(v, 2), _level(w, 1), s)
        g = _join4(_level(u, 1), _level(v, 0), _level(v, 3), _level(w, 2), s)
        b = _join4(_level(u, 2), _level(v, 1), _level(w, 0), _level(w, 3), s)
        return r, g, b


@triton.jit
def _halves(x, n: tl.constexpr):  # type: ignore[no-untyped-def]
    """A pixel in four of (TILE, 4), for the first and second four of every eight: two (n,)."""
    return tl.split(x.reshape((n, 2)))


@triton.jit
def store(out, left, r, g, b, FAST: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Interleave what `load` gave and write it to the first `left` units at out."""
    kind: tl.constexpr = out.dtype.element_ty
    if not FAST:
        t = tl.arange(0, TILE)
        tl.store(out + 3 * t, r.to(kind), mask=t < left, cache_modifier=".cs")
        tl.store(out + (3 * t + 1), g.to(kind), mask=t < left, cache_modifier=".cs")
        tl.store(out + (3 * t + 2), b.to(kind), mask=t < left, cache_modifier=".cs")
    else:
        r0, r1, r2, r3 = _split4(r, (TILE, 4))
        g0, g1, g2, g3 = _split4(g, (TILE, 4))
        b0, b1, b2, b3 = _split4(b, (TILE, 4))
        lane: tl.constexpr = 4 if kind == tl.float32 else 8  # values in 128 bits
        n: tl.constexpr = 16 * TILE // lane
        if kind == tl.float32:
            r0, g0, b0 = r0.reshape((n,)), g0.reshape((n,)), b0.reshape((n,))
            r1, g1, b1 = r1.reshape((n,)), g1.reshape((n,)), b1.reshape((n,))
            r2, g2, b2 = r2.reshape((n,)), g2.reshape((n,)), b2.reshape((n,))
            r3, g3, b3 = r3.reshape((n,)), g3.reshape((n,)), b3.reshape((n,))
            values = _rows(r0, g0, b0, r1, g1, b1, r2, g2, b2, r3, g3, b3, n)
        else:
            # The lower and the upper half of twelve words.
            l0, l6 = _halves(r0, n)
            l1, l7 = _halves(b0, n)
            l2, l8 = _halves(g1, n)
            l3, l9 = _halves(r2, n)
            l4, l10 = _halves(b2, n)
            l5, l11 = _halves(g3, n)
            h0, h6 = _halves(g0, n)
            h1, h7 = _halves(r1, n)
            h2, h8 = _halves(b1, n)
            h3, h9 = _halves(g2, n)
            h4, h10 = _halves(r3, n)
            h5, h11 = _halves(b3, n)
            lower = _rows(l0, l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l11, n)
            upper = _rows(h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11, n)
            # Rounded as pairs of neighbours: the hardware does two in one instruction.
            values = tl.join(lower, upper).to(kind)
        # Eight units, a warp's share of an instruction, in one dimension: Triton 3.6 would deal its
        # lanes out over single units before it comes to what is within. The other dimension is
        # left to a thread's registers, whose share of an address is a constant of the instruction.
        at, of_unit, inside = places(lane)
        unit = 8 * tl.arange(0, n // 8)[:, None]
        inside = (unit + of_unit < n // TILE * left) & inside
        values = values.reshape((n // 8, 32 * lane))
        tl.store(out + (3 * lane * unit + at), values, mask=inside, cache_modifier=".cs")


# --- sums of bytes --------------------------------------------------------------------------------


@triton.jit
def cut(pairs, add):  # type: ignore[no-untyped-def]
    """min(byte, cap + 1) of two bytes in the halves of a word, and 1 where byte > cap.

    `add` has 255 - cap in both halves: a byte above cap carries into the upper byte of its half,
    and leaves byte - (cap + 1) in the lower.
    """
    total = pairs + add
    over = (total >> 8) & 0x00010001
    return pairs - (total & (over * 255)), over


@triton.jit
def _by_place(even, odd, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of bytes 0, 3, 6, .. of 16, of 1, 4, 7, .. and of 2, 5, 8, ..: three (tile, 4) int32.

    `even` and `odd` (tile / 8, 128) hold bytes 0 and 2, and 1 and 3, of four words in their halves.
    """
    e0, e1, e2, e3 = _split4(even.reshape((tile, 4, 4)), (tile, 4))
    o0, o1, o2, o3 = _split4(odd.reshape((tile, 4, 4)), (tile, 4))
    low: tl.constexpr = 0xFFFF
    first = (e0 & low) + (o0 >> 16) + (e1 >> 16) + (o2 & low) + (e3 & low) + (o3 >> 16)
    second = (o0 & low) + (e1 & low) + (o1 >> 16) + (e2 >> 16) + (o3 & low)
    third = (e0 >> 16) + (o1 & low) + (e2 & low) + (o2 >> 16) + (e3 >> 16)
    return first.to(tl.int32), second.to(tl.int32), third.to(tl.int32)


@triton.jit
def by_channel(even, odd, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums over all of red, green and blue. Load k of a group begins with channel k."""
    s0, s1, s2 = _by_place(even, odd, tile)
    k = tl.arange(0, 4)[None, :]
    red = tl.where(k == 0, s0, tl.where(k == 1, s2, s1))
    green = tl.where(k == 0, s1, tl.where(k == 1, s0, s2))
    blue = tl.where(k == 0, s2, tl.where(k == 1, s1, s0))
    return tl.sum(red), tl.sum(green), tl.sum(blue)


__all__ = ["by_channel", "cut", "load", "places", "store"]
