"""Pages of mapped files: weights that lie in a file take main memory once they are used, and can give it back.

A page that was read counts as the process's memory until nobody has it mapped any more. Streaming from a disk lets a
weight's pages go after its layer has computed. The next use reads them again, from the system's cache of the file as
long as that has room. Packing 420 MB of weights so took as long as with pages that stay, and a fifth less than reading
them into one buffer that is used again (`tests/benchmarks/disk_streaming.py`).
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

_ADVICE: int | None = getattr(mmap, "MADV_DONTNEED", None)  # not there on Windows

_addresses: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()  # of the first byte


def add_mapping(pages: mmap.mmap, address: int) -> None:
    """Notes where a mapping of a file lies in memory. Nothing writes to it: what was written would be lost."""
    _addresses[pages] = address


@dataclass(frozen=True)
class MappedPages:
    """Parts of mappings, each with its first byte and its bytes, whole pages. It keeps them mapped."""

    parts: tuple[tuple[mmap.mmap, int, int], ...]

    @classmethod
    def under(cls, tensors: Iterable[Tensor]) -> MappedPages:
        """Returns the pages in which tensors lie; none for a tensor that lies in no file."""
        parts = []
        mappings = list(_addresses.items())
        for tensor in tensors:
            if tensor.is_mkldnn or tensor.is_meta or not tensor.is_cpu:
                continue
            place, nbytes = tensor.data_ptr(), tensor.numel() * tensor.element_size()
            for pages, address in mappings:
                if address <= place and place + nbytes <= address + len(pages):
                    first = (place - address) // mmap.PAGESIZE * mmap.PAGESIZE
                    parts.append((pages, first, place - address + nbytes - first))
        return cls(tuple(parts))

    def give_back(self) -> None:
        """Lets the pages go, and with them parts of their neighbours; whatever is used again is read again."""
        if _ADVICE is not None:
            for pages, first, nbytes in self.parts:
                pages.madvise(_ADVICE, first, nbytes)
