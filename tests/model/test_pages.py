"""Protects: tensors that share a block of memory hold what was written, and the last frees the block."""

import gc
import mmap
import weakref
from typing import Any

import pytest
import torch

from tuneserve.model import _pages
from tuneserve.model._pages import Pages


@pytest.mark.parametrize("huge", [True, False])
def test_tensors_keep_what_was_written(huge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pages, "_HUGE", huge and _pages._HUGE)
    monkeypatch.setattr(_pages, "_BLOCK", 1 << 21)
    pages, generator = Pages(), torch.Generator().manual_seed(0)
    sizes = (7, 1 << 20, 64, (1 << 21) + 5, 1 << 20, 1)
    sources = [torch.randn(size, 3, generator=generator).to(torch.bfloat16) for size in sizes]
    # Not contiguous where they are read, contiguous where they are written.
    copies = [pages.copy(source.T) for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        assert torch.equal(copy, source.T) and copy.is_contiguous() and copy.dtype == torch.bfloat16
        assert copy.data_ptr() % 64 == 0


def test_what_is_given_out_in_turn_lies_in_turn() -> None:
    pages = Pages()
    first, second = pages.empty(100), pages.empty(100)
    assert second.data_ptr() - first.data_ptr() == 128


def test_a_kernel_without_large_pages_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mapping(mmap.mmap):
        def madvise(self, *_: Any) -> None:
            raise OSError("Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Mapping)
    assert Pages().copy(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_a_block_lives_as_long_as_a_tensor_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mapping(mmap.mmap):
        pass

    def mapped(*arguments: Any, **options: Any) -> mmap.mmap:
        mapping = Mapping(*arguments, **options)
        mappings.append(weakref.ref(mapping))
        return mapping

    mappings: list[weakref.ref[mmap.mmap]] = []
    monkeypatch.setattr(_pages, "_HUGE", True)
    monkeypatch.setattr(mmap, "mmap", mapped)
    pages = Pages()
    kept = pages.empty(10)
    pages.empty(10)
    (mapping,) = mappings
    del pages
    gc.collect()
    assert mapping() is not None
    del kept
    gc.collect()
    assert mapping() is None
