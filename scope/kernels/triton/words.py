# ruff: noqa: ANN201, ANN202  (what a kernel returns, Triton knows)
"""Words that hold several numbers become tiles of numbers, a plane of them at a time.

The i-th numbers of all words are plane i. Two words lie in one register of a tensor core's operand,
so instructions that work on both at once are half as many; Triton writes one for each, hence the
assembly. It makes float16, whose fraction takes a code as it is, without a conversion.
"""

import triton
import triton.language as tl


@triton.jit
def grid(pairs_ptr, mask, BITS: tl.constexpr, HALF: tl.constexpr):
    """Scales and zeros of `rounding.Codes` as `from_codes` takes them.

    A pair is 32 bits, the least that a GPU brings in advance.

    Returns:
        Two of ``[n]``: float32, or float16 if HALF.
    """
    pairs = tl.load(pairs_ptr, mask=mask, other=0)
    if HALF:
        asm: tl.constexpr = _span_and_low(BITS)
        scale, zero = tl.inline_asm_elementwise(
            asm, "=r,=r,r,r", [pairs], (tl.float16, tl.float16), is_pure=True, pack=2
        )
    else:
        scale = (pairs & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        zero = ((pairs >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return scale, zero


@triton.jit
def from_codes(words, third, scale, zero, PLANE: tl.constexpr, BITS: tl.constexpr):
    """Numbers of a plane of `rounding.Codes`, in the type of the grid.

    Args:
        words: int16.
        third: the same with the third bits of codes of 3 bits, plane i at bit 2i.
        scale, zero: of `grid`; they broadcast.
    """
    if scale.dtype == tl.float16:
        asm: tl.constexpr = _number_of_code(PLANE, BITS)
        args = (words, scale, zero, third) if BITS == 3 else (words, scale, zero)
        registers: tl.constexpr = "=r" + ",r" * len(args)
        numbers = tl.inline_asm_elementwise(asm, registers, args, tl.float16, is_pure=True, pack=2)
    else:
        low: tl.constexpr = 2 if BITS == 3 else BITS
        codes = (words >> (PLANE * low)) & ((1 << low) - 1)
        if BITS == 3:
            codes += ((third >> (2 * PLANE)) & 1) * 4
        numbers = codes.to(tl.float32) * scale + zero
    return numbers


@triton.jit
def from_e4m3(words):
    """float16 of both planes of int16 words."""
    return tl.inline_asm_elementwise(
        _NUMBERS_OF_E4M3, "=r,=r,r", [words], (tl.float16, tl.float16), is_pure=True, pack=2
    )


# Two numbers of one word after the other, then those of one plane side by side.
_NUMBERS_OF_E4M3 = tl.constexpr(
    "{ .reg .b16 x, y; .reg .b32 s, t; mov.b32 {x, y}, $2; "
    "cvt.rn.f16x2.e4m3x2 s, x; cvt.rn.f16x2.e4m3x2 t, y; "
    "prmt.b32 $0, s, t, 0x5410; prmt.b32 $1, s, t, 0x7632; }"
)


@triton.constexpr_function
def _span_and_low(bits):
    """Of codes in the fraction of numbers from 1 on: 2^bits scales, and the zero less than that."""
    span = f"{{ .reg .b32 s, z, n; mov.b32 n, {_twice((15 + bits) << 10)}; "
    span += "prmt.b32 s, $2, $3, 0x5410; prmt.b32 z, $2, $3, 0x7632; "
    return span + "mul.rn.f16x2 $0, s, n; xor.b32 n, n, 0x80008000; fma.rn.f16x2 $1, s, n, z; }"


@triton.constexpr_function
def _number_of_code(plane, bits):
    """$1 words, $2 spans, $3 lows, $4 words of third bits."""
    parts = [("$1", 2, 0, 2), ("$4", 1, 2, 2)] if bits == 3 else [("$1", bits, 0, bits)]
    asm = f"{{ .reg .b32 x, y; mov.b32 x, {_twice(15 << 10)}; "
    for words, part, done, apart in parts:
        place = 10 - bits + done
        left = place - plane * apart
        shift = f"shl.b32 y, {words}, {left}" if left >= 0 else f"shr.b32 y, {words}, {-left}"
        # (y & mask) | x
        asm += f"{shift}; lop3.b32 x, y, {_twice(((1 << part) - 1) << place)}, x, 0xea; "
    return asm + "fma.rn.f16x2 $0, x, $2, $3; }"


@triton.constexpr_function
def _twice(bits):
    return bits << 16 | bits
