"""Memory on its way to the L2 cache while a program waits for what it needs beside it."""

import triton
import triton.language as tl


@triton.jit
def prefetch(pointer, count, thread):
    """Have one thread of a program fetch so many bytes; they and their address are multiples of 16.

    It is ``cp.async.bulk.prefetch.L2`` of PTX, which needs compute capability 9.0.
    """
    tl.inline_asm_elementwise(
        "{ .reg .pred mine; .reg .b32 own; mov.u32 own, %tid.x; setp.eq.u32 mine, own, $3;"
        " @mine cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r,r", [pointer.to(tl.int64, bitcast=True), count, thread], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
