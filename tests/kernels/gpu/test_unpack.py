"""Protects: the PTX that turns codes into numbers, which no interpreter runs, computes what is written beside it."""

import re
from collections.abc import Callable

import pytest
import torch

from tuneserve.kernels.gpu import unpack
from tuneserve.kernels.gpu.packed import PackedKind, nf4_values

WORD = 0xFFFFFFFF


def halves(word: int) -> torch.Tensor:
    """Return the two bfloat16 of a word."""
    return torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).short().view(torch.bfloat16)


def fma(a: int, b: int, c: int) -> int:
    """``fma.rn.bf16x2``."""
    sums = (halves(a).double() * halves(b).double() + halves(c).double()).bfloat16().view(torch.int16)
    return int(sums[0]) & 0xFFFF | (int(sums[1]) & 0xFFFF) << 16


def prmt(a: int, b: int, select: int) -> int:
    """``prmt.b32``: four bytes of eight, or eight times the sign of one."""
    given = (a | b << 32).to_bytes(8, "little")
    taken = []
    for place in range(4):
        byte = given[select >> 4 * place & 7]
        taken.append(255 * (byte >> 7) if select >> 4 * place & 8 else byte)
    return int.from_bytes(bytes(taken), "little")


def lop3(a: int, b: int, c: int, table: int) -> int:
    """``lop3.b32``, of which only this table is used."""
    assert table == 0xEA
    return a & b | c


OPERATIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "shr.u32": lambda a, by: a >> by,
    "shl.b32": lambda a, by: a << by & WORD,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "fma.rn.bf16x2": fma,
}


def run(ptx: str, results: int, given: list[int]) -> list[int]:
    """Return the results of PTX whose operands ``$n`` are the results and then what is given."""
    values = {f"${results + index}": word for index, word in enumerate(given)}
    for line in re.sub(r"[{}]|\.reg[^;]*;", "", ptx).split(";"):
        if words := line.replace(",", " ").split():
            operation, into, *operands = words
            values[into] = OPERATIONS[operation](*(values[one] if one in values else int(one, 0) for one in operands))
    return [values[f"${index}"] for index in range(results)]


def expected(kind: PackedKind, code: int) -> float:
    match kind:
        case "int4":
            return code - 8.0
        case "nf4":
            return nf4_values()[code]
        case "int8":
            return float(code - 256 if code > 127 else code)
        case "fp8":
            return float(torch.tensor(code, dtype=torch.uint8).view(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("kind", "ptx", "shifts"),
    [
        ("int4", unpack._INT4.value, [4 * product + 16 * half for product in range(4) for half in range(2)]),
        ("nf4", unpack._NF4.value, list(range(0, 32, 4))),
        ("int8", unpack._INT8.value, [0, 16, 8, 24]),
        ("fp8", unpack._FP8.value, [0, 16, 8, 24]),
    ],
)
def test_every_code_in_every_place(kind: PackedKind, ptx: str, shifts: list[int]) -> None:
    bits = 32 // len(shifts)
    table = [word & WORD for word in unpack._nf4_words()] if kind == "nf4" else []
    generator = torch.Generator().manual_seed(0)
    for code in range(1 << bits):
        if kind == "fp8" and code & 127 == 127:
            continue
        # Others in the other places, and each code in each place.
        others = torch.randint(1 << bits, (len(shifts),), generator=generator).tolist()
        for place in range(len(shifts)):
            codes = [
                code if index == place or (kind == "fp8" and one & 127 == 127) else one
                for index, one in enumerate(others)
            ]
            word = sum(one << shift for one, shift in zip(codes, shifts, strict=True))
            found = [float(value) for result in run(ptx, len(shifts) // 2, [word, *table]) for value in halves(result)]
            assert found == [expected(kind, one) for one in codes]
