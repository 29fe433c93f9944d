"""Codes of 4 and 8 bits to bfloat16, a few instructions for two at a time.

Words are those of :mod:`~tuneserve.kernels.gpu.packed`. What is written in PTX is written in Triton's own operations
beside it, for the interpreter.
"""

import functools

import torch
import triton
import triton.language as tl

from tuneserve.kernels.gpu.packed import PackedWeight, nf4_bits, nf4_pairs, nf4_values


def _nf4_words() -> list[int]:
    """Return the tables of the two halves of NF4's codes: low bytes of each, then high bytes, four in a word.

    A look-up that was not meant gives 0 in the first half and, in the second, ones where the sign there is set; so the
    first half is stored inverted where it is, and both are put together by exclusive or.
    """
    bits = nf4_bits()
    words = []
    for byte in (0, 8):
        halves = [[bits[code] >> byte & 255 for code in half] for half in zip(*nf4_pairs(), strict=True)]
        first = [one ^ 255 if other & 128 else one for one, other in zip(*halves, strict=True)]
        for half in (first, halves[1]):
            words += [int.from_bytes(bytes(half[:4]), "little"), int.from_bytes(bytes(half[4:]), "little")]
    return words


# An exponent in front of a code makes 128 + code.
_INT4 = tl.constexpr("""
{
.reg .b32 a, b, c, d, one, less;
mov.b32 one, 0x3f803f80;
mov.b32 less, 0xc308c308;
shr.u32 b, $4, 4;
shr.u32 c, $4, 8;
shr.u32 d, $4, 12;
lop3.b32 a, $4, 0x000f000f, 0x43004300, 0xea;
lop3.b32 b, b, 0x000f000f, 0x43004300, 0xea;
lop3.b32 c, c, 0x000f000f, 0x43004300, 0xea;
lop3.b32 d, d, 0x000f000f, 0x43004300, 0xea;
fma.rn.bf16x2 $0, a, one, less;
fma.rn.bf16x2 $1, b, one, less;
fma.rn.bf16x2 $2, c, one, less;
fma.rn.bf16x2 $3, d, one, less;
}
""")
# Of the low bytes and then of the high ones: the first half of the table and the second, each two words.
_NF4 = tl.constexpr("""
{
.reg .b32 other, low, high, more, up;
xor.b32 other, $4, 0x88888888;
prmt.b32 low, $5, $6, $4;
prmt.b32 more, $7, $8, other;
xor.b32 low, low, more;
prmt.b32 high, $9, $10, $4;
prmt.b32 more, $11, $12, other;
xor.b32 high, high, more;
prmt.b32 $0, low, high, 0x5140;
prmt.b32 $1, low, high, 0x7362;
shr.u32 up, $4, 16;
shr.u32 other, other, 16;
prmt.b32 low, $5, $6, up;
prmt.b32 more, $7, $8, other;
xor.b32 low, low, more;
prmt.b32 high, $9, $10, up;
prmt.b32 more, $11, $12, other;
xor.b32 high, high, more;
prmt.b32 $2, low, high, 0x5140;
prmt.b32 $3, low, high, 0x7362;
}
""")
# The lower seven bits as 128 + bits, and -128 or, where the sign is set, -256.
_INT8 = tl.constexpr("""
{
.reg .b32 a, b, c, d, one, up;
mov.b32 one, 0x3f803f80;
shr.u32 up, $2, 8;
lop3.b32 a, $2, 0x007f007f, 0x43004300, 0xea;
lop3.b32 b, $2, 0x00800080, 0xc300c300, 0xea;
lop3.b32 c, up, 0x007f007f, 0x43004300, 0xea;
lop3.b32 d, up, 0x00800080, 0xc300c300, 0xea;
fma.rn.bf16x2 $0, a, one, b;
fma.rn.bf16x2 $1, c, one, d;
}
""")
# With the exponent as it is, they are too small by 2^120.
_FP8 = tl.constexpr("""
{
.reg .b32 a, b, up, scale, zero;
mov.b32 scale, 0x7b807b80;
mov.b32 zero, 0x80008000;
shl.b32 up, $2, 8;
and.b32 a, up, 0x7f007f00;
shr.u32 a, a, 4;
lop3.b32 a, up, 0x80008000, a, 0xea;
and.b32 b, $2, 0x7f007f00;
shr.u32 b, b, 4;
lop3.b32 b, $2, 0x80008000, b, 0xea;
fma.rn.bf16x2 $0, a, scale, zero;
fma.rn.bf16x2 $1, b, scale, zero;
}
""")
_TABLE = tl.constexpr(tuple(nf4_values()))


# Each lane from a place of its own: what is known to be the same in all of them is moved to where it is used each time.
_LOAD = tl.constexpr("""
{
.reg .b32 lane;
.reg .b64 at;
mov.u32 lane, %laneid;
mul.wide.u32 at, lane, 32;
add.u64 at, at, $8;
ld.global.nc.v4.b32 {$0, $1, $2, $3}, [at];
ld.global.nc.v4.b32 {$4, $5, $6, $7}, [at+16];
}
""")


@functools.cache
def _table(device: torch.device) -> torch.Tensor:
    words = torch.tensor(_nf4_words(), dtype=torch.int64, device=device)
    return words.to(torch.int32).repeat(32, 1)


def table_of(weight: PackedWeight) -> torch.Tensor | None:
    """Return what kernels are to give :func:`load_table` for a weight."""
    return _table(weight.words.device) if weight.kind == "nf4" else None


@triton.jit
def load_table(table, KIND: tl.constexpr, PTX: tl.constexpr):
    """Return the words of the table, for :func:`operands`."""
    if PTX and KIND == "nf4":
        return tl.inline_asm_elementwise(
            _LOAD,
            "=r,=r,=r,=r,=r,=r,=r,=r,l",
            [table.to(tl.int64)],
            (tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:  # noqa: RET505
        return (0,)


@triton.jit
def operands(words, table, KIND: tl.constexpr, PTX: tl.constexpr, DTYPE: tl.constexpr):
    """Return the operands (S, M, 16) of each product, four where codes have 4 bits and two where 8, of words (S, M, 8).

    Without ``PTX`` they are computed in Triton's own operations, in ``DTYPE``; else they are bfloat16.
    """
    if PTX:
        if KIND == "int4":
            a, b, c, d = tl.inline_asm_elementwise(
                _INT4, "=r,=r,=r,=r,r", [words], (tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1
            )
            return _halves(a), _halves(b), _halves(c), _halves(d)
        elif KIND == "nf4":  # noqa: RET505
            a, b, c, d = tl.inline_asm_elementwise(
                _NF4,
                "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r",
                [words, table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]],
                (tl.int32, tl.int32, tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )
            return _halves(a), _halves(b), _halves(c), _halves(d)
        elif KIND == "int8":
            a, b = tl.inline_asm_elementwise(_INT8, "=r,=r,r", [words], (tl.int32, tl.int32), is_pure=True, pack=1)
            return _halves(a), _halves(b)
        else:
            a, b = tl.inline_asm_elementwise(_FP8, "=r,=r,r", [words], (tl.int32, tl.int32), is_pure=True, pack=1)
            return _halves(a), _halves(b)
    elif KIND == "int4" or KIND == "nf4":
        return (
            _plain(words, 0, KIND, DTYPE),
            _plain(words, 1, KIND, DTYPE),
            _plain(words, 2, KIND, DTYPE),
            _plain(words, 3, KIND, DTYPE),
        )
    else:
        return _plain(words, 0, KIND, DTYPE), _plain(words, 1, KIND, DTYPE)


@triton.jit
def _halves(word):
    low = (word & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    high = ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high).reshape(word.shape[0], word.shape[1], 16)


@triton.jit
def _plain(words, product: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr):
    if KIND == "int4":
        first, step = words >> (4 * product), 16
    elif KIND == "nf4":
        first, step = words >> (8 * product), 4
    else:
        first, step = words >> (8 * product), 16
    low, high = _value(first, KIND), _value(first >> step, KIND)
    return tl.join(low, high).reshape(words.shape[0], words.shape[1], 16).to(DTYPE)


@triton.jit
def _value(word, KIND: tl.constexpr):
    if KIND == "int4":
        return ((word & 15) - 8).to(tl.float32)
    elif KIND == "int8":  # noqa: RET505
        return ((word & 127) - (word & 128)).to(tl.float32)
    elif KIND == "fp8":
        exponent, rest = (word >> 3) & 15, word & 7
        whole = tl.where(exponent == 0, rest, rest + 8).to(tl.float32)
        size = whole * tl.exp2((tl.maximum(exponent, 1) - 10).to(tl.float32))
        return tl.where((word & 128) != 0, -size, size)
    else:
        value = tl.zeros(word.shape, tl.float32)
        for code in tl.static_range(16):
            value = tl.where((word & 15) == code, _TABLE[code], value)
        return value
