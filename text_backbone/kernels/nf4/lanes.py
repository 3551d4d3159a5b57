"""Products of a few rows with NF4 matrices, near the speed at which their codes come from memory.

A byte, two codes, becomes two 16-bit values by one look-up in shared memory: a table of 256 pairs with a copy for each
lane, so that no two lanes of a warp wait for one bank. What the look-up gives is, as it is, an operand register of the
tensor cores' `mma.m16n8k16`: 16 matrix rows by 16 columns on the left, 8 columns on the right. In which order a
product runs through the columns is free, and chosen so that each lane reads 16 bytes of codes at once: of 128 columns
(a segment: two blocks, with a scale each) lane 4 g + t has 32 t to 32 t + 31, of matrix rows g and g + 8. So lanes of
t < 2 have the first block and the others the second, and one product would mix the two. The right side keeps them
apart: its column n < 4 is token n in the first block and zero in the second, column n + 4 the other way round. Each sum
is then of one block, whose scale it is multiplied by, and in the end the two are added.

What limits these kernels is not arithmetic but the unit through which look-ups and loads pass, one line of 128 bytes a
cycle. Hence the 16 bytes, the scales of eight blocks in one load, and tokens' values `arranged` for these loads.

Triton says what a program does and inline PTX what a lane does: tensors here have one element per thread.
"""

# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005 (Triton has tuples that grow by addition alone)
from __future__ import annotations

import triton
import triton.language as tl

_TABLE: tl.constexpr = tl.constexpr(
    "{\n.shared .align 128 .b8 pairs[32768];\nmov.u32 $0, pairs;\nadd.u32 $0, $0, $1;\n}"
)
_TABLE_AND_TOKEN: tl.constexpr = tl.constexpr(
    "{\n.shared .align 128 .b8 pairs[45056];\nmov.u32 $0, pairs;\nadd.u32 $0, $0, $1;\n}"
)
_KEEP: tl.constexpr = tl.constexpr("st.shared.v2.b64 [$1], {$2, $3};\nmov.u32 $0, $1;")
_STORE: tl.constexpr = tl.constexpr("st.shared.v4.b32 [$1], {$2, $2, $2, $2};\nmov.u32 $0, $1;")
_CODES: tl.constexpr = tl.constexpr("ld.global.nc.L1::no_allocate.L2::128B.v2.b64 {$0, $1}, [$2];")
_TOKEN: tl.constexpr = tl.constexpr(  # 16 bytes, or zeros
    "{\n.reg .pred p;\nsetp.ne.b32 p, $3, 0;\nmov.b64 $0, 0;\nmov.b64 $1, 0;\n@p ld.global.v2.b64 {$0, $1}, [$2];\n}"
)
_KEPT: tl.constexpr = tl.constexpr(_TOKEN.value.replace("ld.global", "ld.shared"))
_FETCH: tl.constexpr = tl.constexpr("shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;")
_FENCE: tl.constexpr = tl.constexpr("bar.warp.sync 0xffffffff;\nmov.u32 $0, $1;")


def _lookup_asm() -> str:
    lines = [".reg .b32 w<4>, t;", "mov.b64 {w0, w1}, $16;", "mov.b64 {w2, w3}, $17;"]
    for j in range(4):
        for a, (word, byte) in enumerate(((0, 2 * j), (2, 2 * j), (0, 2 * j + 1), (2, 2 * j + 1))):
            lines += [
                f"prmt.b32 t, w{word + byte // 4}, 0, {0x4440 + byte % 4};",
                "mad.lo.u32 t, t, 128, $18;",
                f"ld.shared.b32 ${4 * j + a}, [t];",
            ]
    return "{\n" + "\n".join(lines) + "\n}"


def _products_asm(dtype: str) -> str:
    lines = [".reg .b32 x<8>;", *(f"mov.b64 {{x{2 * i}, x{2 * i + 1}}}, ${20 + i};" for i in range(4))]
    lines += [f"mov.f32 ${i}, ${24 + i};" for i in range(4)]
    sums = "{$0, $1, $2, $3}"
    for j in range(4):
        left = ", ".join(f"${4 + 4 * j + a}" for a in range(4))
        lines.append(
            f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 {sums}, {{{left}}}, "
            f"{{x{2 * j}, x{2 * j + 1}}}, {sums};"
        )
    return "{\n" + "\n".join(lines) + "\n}"


_LOOKUP: tl.constexpr = tl.constexpr(_lookup_asm())
_LOOKUP_ARGS: tl.constexpr = tl.constexpr(",".join(["=&r"] * 16 + ["l", "l", "r"]))
_PRODUCTS: tl.constexpr = tl.constexpr(_products_asm("bf16"))
_PRODUCTS_HALF: tl.constexpr = tl.constexpr(_products_asm("f16"))
_PRODUCTS_ARGS: tl.constexpr = tl.constexpr(",".join(["=&f"] * 4 + ["r"] * 16 + ["l"] * 4 + ["f"] * 4))


@triton.jit
def fill_table(pairs, thread, THREADS: tl.constexpr, KEEP: tl.constexpr = False):
    """The shared memory address of this lane's copy of the table of pairs, once all threads have written it.

    KEEP: with room for `keep` behind.
    """
    base = tl.inline_asm_elementwise(
        _TABLE_AND_TOKEN if KEEP else _TABLE, "=&r,r", [thread * 0], dtype=tl.int32, is_pure=False, pack=1
    )
    for entry in tl.static_range(0, 256, THREADS):
        at = thread + entry
        pair = tl.load(pairs + at % 256)
        for i in tl.static_range(8):
            tl.inline_asm_elementwise(
                _STORE, "=r,r,r", [base + at % 256 * 128 + (at + i) % 8 * 16, pair],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
    tl.debug_barrier()
    return base + thread % 32 * 4


@triton.jit
def keep(x, table, thread, K: tl.constexpr, THREADS: tl.constexpr):
    """Copy a token's K values, at most 6144, to shared memory, arranged: the address is returned.

    So they are waited for apart from codes, which come from farther away: of what a lane has asked global memory for,
    the compiler can tell only so many things apart.
    """
    base = table - thread % 32 * 4 + 32768
    values = ()
    for first in tl.static_range(0, K // 8, THREADS):
        at = x.to(tl.pointer_type(tl.int64)) + (first + thread) * 2
        inside = first + thread < K // 8
        values = values + (tl.load(at, mask=inside, other=0), tl.load(at + 1, mask=inside, other=0))
    for i in tl.static_range(len(values) // 2):
        part = i * THREADS + thread  # past the end: room that nothing is read from
        tl.inline_asm_elementwise(
            _KEEP, "=r,r,l,l", [base + arranged(part * 8) * 2, values[2 * i], values[2 * i + 1]],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    tl.debug_barrier()
    return base


@triton.jit
def _scale(code, nested, offset):
    """`nf4.scale_map[code] * nested + offset`, computed: a look-up would wait for the same unit as those of codes."""
    j = code - 127
    m = tl.abs(j).to(tl.float32)
    bits = m.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 127
    y = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    half = ((126 - exponent) << 23).to(tl.float32, bitcast=True)  # 2^-(exponent + 1)
    e = exponent.to(tl.float32)
    step = tl.exp2(e * 3.321928094887362 - 19.931568569324174) * (0.9 * (y + half) - 0.8)
    step = tl.where(j < 0, -step, step)
    step = tl.where(j == 0, 0.0, tl.where(j == 128, 1.0, step))
    return step * nested + offset


@triton.jit
def _streamed(at):
    """16 bytes as two words, of what is read once."""
    return tl.inline_asm_elementwise(_CODES, "=l,=l,l", [at], dtype=(tl.int64, tl.int64), is_pure=False, pack=1)


@triton.jit
def _codes(codes, row, under, chunk, t, K: tl.constexpr):
    """Of a chunk, two segments of 128 columns: 32 codes of row `row` and 32 of `under` each, as eight words."""
    words = ()
    for segment in tl.static_range(2):
        at = chunk * 16 + segment * 8 + t * 2
        words = words + _streamed(codes + row * (K // 16) + at) + _streamed(codes + under * (K // 16) + at)
    return words


@triton.jit
def _fence(lane):
    """Loads before it stay before it: the compiler would move them to where they are used, and their wait with them."""
    tl.inline_asm_elementwise(_FENCE, "=r,r", [lane], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _token(xs, mine):
    """xs: pointers, or numbers of words of eight bytes in shared memory."""
    KEPT: tl.constexpr = not xs.dtype.is_ptr()
    return tl.inline_asm_elementwise(
        _KEPT if KEPT else _TOKEN, "=&l,=&l,r,r" if KEPT else "=&l,=&l,l,r",
        [xs * 8 if KEPT else xs, mine.to(tl.int32)], dtype=(tl.int64, tl.int64), is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _tokens(at, live, u: tl.constexpr, NT: tl.constexpr, ARRANGED: tl.constexpr):
    """For unit `u`, half a segment, of a chunk: this lane's 16 values of its token in every column tile, or zeros."""
    tokens = ()
    for n in tl.static_range(NT):
        if ARRANGED:
            x = at[n] + u // 2 * 32 + u % 2 * 16
            tokens = tokens + _token(x, live[n]) + _token(x + 8, live[n])
        else:
            x = at[n] + u // 2 * 32 + u % 2 * 4
            tokens = tokens + _token(x, live[n]) + _token(x + 2, live[n])
    return tokens


@triton.jit
def _lookups(words, table, u: tl.constexpr):
    at: tl.constexpr = u // 2 * 4 + u % 2
    return tl.inline_asm_elementwise(
        _LOOKUP, _LOOKUP_ARGS, [words[at], words[at + 2], table], dtype=(tl.int32,) * 16, is_pure=False, pack=1
    )


@triton.jit
def _products(a, x, d, n: tl.constexpr, HALF: tl.constexpr):
    return tl.inline_asm_elementwise(
        _PRODUCTS_HALF if HALF else _PRODUCTS, _PRODUCTS_ARGS,
        [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15],
         x[4 * n], x[4 * n + 1], x[4 * n + 2], x[4 * n + 3], d[4 * n], d[4 * n + 1], d[4 * n + 2], d[4 * n + 3]],
        dtype=(tl.float32,) * 4, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _chunk(
    sums, words, x, at, live, scales, table, zeros, NT: tl.constexpr, ARRANGED: tl.constexpr, HALF: tl.constexpr
):
    """Add a chunk's products, with its four scales of a lane: of rows `row` and `under` in either segment."""
    a = _lookups(words, table, 0)
    d = zeros
    for u in tl.static_range(4):
        if u < 3:
            y = _tokens(at, live, u + 1, NT, ARRANGED)
            b = _lookups(words, table, u + 1)
        new = ()
        for n in tl.static_range(NT):
            new = new + _products(a, x, d, n, HALF)
        d = new
        if u % 2 == 1:
            added = ()
            for i in tl.static_range(4 * NT):
                added = added + (sums[i] + d[i] * scales[u // 2 * 2 + i // 2 % 2],)
            sums = added
            d = zeros
        if u < 3:
            a = b
            x = y
    return sums


@triton.jit
def _scales(bytes, nested, offset, lane, c: tl.constexpr):
    """Of chunk `c` of a pair: the scales of this lane's block in segments 0 and 1, of rows `row` and `under` each."""
    t = lane % 4
    word = (bytes >> (32 * c + t % 2 * 8)).to(tl.int32)
    first = _scale(word & 255, nested, offset)
    second = _scale(word >> 16 & 255, nested, offset)
    source = lane - t + t // 2
    return (
        _fetched(first, source),
        _fetched(first, source + 2),
        _fetched(second, source),
        _fetched(second, source + 2),
    )


@triton.jit
def swept(
    xs, live, codes, scales, nested, offset, row, under, line, spot, first, lane, table,
    K: tl.constexpr, WARPS: tl.constexpr, NT: tl.constexpr, ARRANGED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Of a lane: NT times the sums of rows `row` (columns 2 t, 2 t + 1) and `under`, over the `first`-th share of K.

    xs: where the lane's token of each column tile begins; live: whether there is one, and this lane's blocks are its.
    line: the row whose scales this lane decodes, `row` if t < 2 and else `under`; spot: in the whole matrix, the number
    of that row's first block, which tells the place in `nested`; `nested` and `offset` are those of its matrix.
    """
    PAIRS: tl.constexpr = K // 512
    SHARE: tl.constexpr = (PAIRS + WARPS - 1) // WARPS
    t = lane % 4
    zero = (lane * 0).to(tl.float32)
    sums = (zero, zero, zero, zero) * NT
    zeros = sums
    begin = first * SHARE
    now = _codes(codes, row, under, tl.minimum(begin, PAIRS - 1) * 2, t, K)
    for pair in range(0, SHARE):
        here = begin + pair
        mine = ()
        at = ()
        for n in tl.static_range(NT):
            mine = mine + (live[n] & (here < PAIRS),)
            at = at + (xs[n] + here * 128 + t * (2 if ARRANGED else 8),)
        here = tl.minimum(here, PAIRS - 1)
        bytes = tl.load(scales + line * PAIRS + here)
        step = tl.load(nested + (spot + here * 8) // 256)
        x = _tokens(at, mine, 0, NT, ARRANGED)
        after = _codes(codes, row, under, here * 2 + 1, t, K)
        _fence(lane)
        steps = _scales(bytes, step, offset, lane, 0)
        sums = _chunk(sums, now, x, at, mine, steps, table, zeros, NT, ARRANGED, HALF)
        later = ()
        for n in tl.static_range(NT):
            later = later + (at[n] + 64,)
        x = _tokens(later, mine, 0, NT, ARRANGED)
        now = _codes(codes, row, under, tl.minimum(here + 1, PAIRS - 1) * 2, t, K)
        _fence(lane)
        steps = _scales(bytes, step, offset, lane, 1)
        sums = _chunk(sums, after, x, later, mine, steps, table, zeros, NT, ARRANGED, HALF)
    return sums


@triton.jit
def total(sums, lane, i: tl.constexpr, WARPS: tl.constexpr):
    """float32 [32]: the sums of columns n and n + 4, even and odd blocks, over all warps."""
    return tl.sum(tl.reshape(sums[i] + _fetched(sums[i], lane ^ 2), [WARPS, 32]), 0)


@triton.jit
def total_of_first(row, under, lane, WARPS: tl.constexpr):
    """float32 [32]: the same of the first column alone, of `row` in lanes of t = 0 and of `under` in those of t = 1."""
    row += _fetched(row, lane ^ 2)
    under += _fetched(under, lane ^ 2)
    return tl.sum(tl.reshape(tl.where(lane % 2 == 0, row, _fetched(under, lane ^ 1)), [WARPS, 32]), 0)


@triton.jit
def _fetched(value, source):
    """What another lane has."""
    return tl.inline_asm_elementwise(_FETCH, "=f,f,r", [value, source], dtype=tl.float32, is_pure=False, pack=1)


@triton.jit
def arranged(column):
    """Where a column lies in an arranged row: of 128, lane t's eight-value parts of a load beside the other lanes'."""
    return column // 128 * 128 + column // 8 % 4 * 32 + column // 32 % 4 * 8 + column % 8
