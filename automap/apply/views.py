"""Views: elements of a stored tensor where they lie in a file, and reading them; nothing is read that is not needed.

A Leaves table numbers views; expressions refer to them by number, as Sources called "0", "1", ...
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from automap.apply.header import item_bytes
from automap.apply.places import Files
from automap.apply.stored import Part, Sizes, StoredTensor, dense_strides, span_of
from automap.apply.strided import moved
from automap.plan import Expr, Source
from automap.plan.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 2**22  # of a file, where elements do not lie one behind the other
_BITS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64", 16: "complex128"}
_LONG_RUN_BYTES = 2**16  # runs of at least this are read one by one, shorter ones with what lies between


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a part of a stored tensor: the first at byte `offset` of `place`, the others by `strides`."""

    part: Part
    offset: int
    dtype: str
    sizes: Sizes
    strides: Sizes

    @property
    def size_bytes(self) -> int:
        """The bytes of its elements."""
        return math.prod(self.sizes) * item_bytes(self.dtype)

    @property
    def span_bytes(self) -> int:
        """The bytes from the first element to the last."""
        return span_of(self.sizes, self.strides) * item_bytes(self.dtype)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie one behind the other in row-major order."""
        pairs = zip(self.sizes, self.strides, dense_strides(self.sizes), strict=True)
        return 0 in self.sizes or all(size == 1 or stride == dense for size, stride, dense in pairs)

    @property
    def is_ordered(self) -> bool:
        """Whether outer dims have larger strides, so that rows can be read one after the other."""
        strides = [stride for size, stride in zip(self.sizes, self.strides, strict=True) if size > 1]
        return strides == sorted(strides, reverse=True)

    @property
    def read_bytes(self) -> int:
        """The bytes that reading it takes: with gaps where runs are short."""
        if self.is_dense:
            return self.size_bytes
        dim = self.outermost
        return self.sizes[dim] * self.narrow(dim, 0, 1).read_bytes if _is_read_by_rows(self, dim) else self.span_bytes

    @property
    def buffer_bytes(self) -> int:
        """The memory that reading it takes beside its elements."""
        return 0 if self.is_dense else min(self.span_bytes, CHUNK_BYTES)

    @property
    def outermost(self) -> int:
        """The dim with the longest stride."""
        return max(range(len(self.sizes)), key=lambda dim: (self.sizes[dim] > 1, self.strides[dim]))

    def narrow(self, dim: int, start: int, stop: int) -> View:
        """The view of `start` to `stop` along dim."""
        offset = self.offset + start * self.strides[dim] * item_bytes(self.dtype)
        return replace(self, offset=offset, sizes=(*self.sizes[:dim], stop - start, *self.sizes[dim + 1 :]))

    @property
    def base(self) -> View:
        """The view of all bytes of the part."""
        length = span_of(self.part.sizes, self.part.strides)
        return View(self.part, self.part.offset, self.dtype, (length,), (1,))


def _is_read_by_rows(view: View, dim: int) -> bool:
    row = view.narrow(dim, 0, 1)
    gap = view.strides[dim] * item_bytes(view.dtype) - row.span_bytes
    return gap > 0 and row.span_bytes >= _LONG_RUN_BYTES


@dataclass(slots=True)
class Leaves:
    """The views that an expression's leaves stand for; grows as expressions are cut."""

    views: list[View] = field(default_factory=list)

    def add(self, view: View) -> Source:
        """A leaf for view."""
        self.views.append(view)
        return Source(str(len(self.views) - 1), view.sizes, view.dtype)

    def view(self, leaf: Source) -> View:
        """The view that leaf stands for."""
        return self.views[int(leaf.name)]

    def narrow(self, leaf: Source, dim: int, start: int, stop: int) -> Source:
        """A leaf for a part of leaf."""
        return self.add(self.view(leaf).narrow(dim, start, stop))

    def as_view(self, expr: Expr, leaf: Source) -> Source | None:
        """A leaf for `expr`, a node over leaf, if it only looks at the same elements in another way."""
        view = self.view(leaf)
        seen = moved(expr, view.sizes, view.strides)
        if seen is None:
            return None
        first, sizes, strides = seen
        return self.add(
            replace(view, offset=view.offset + first * item_bytes(view.dtype), sizes=sizes, strides=strides)
        )


def read_view(view: View, files: Files) -> Tensor:
    """The elements of a view as a contiguous tensor of its own."""
    import torch

    value = torch.empty(view.sizes, dtype=torch_dtype(view.dtype))
    if not value.numel():
        return value
    if view.is_dense:
        read_bytes(view.part, view.offset, bytes_of(value), files)
    else:
        _read_strided(view, value, files)
    return value


def read_tensor(stored: StoredTensor, files: Files) -> Tensor:
    """A whole tensor of a checkpoint."""
    import torch

    value = torch.empty(stored.shape, dtype=torch_dtype(stored.dtype))
    for part in stored.parts:
        box = tuple(slice(start, start + size) for start, size in zip(part.starts, part.sizes, strict=True))
        value[box] = read_view(View(part, part.offset, stored.dtype, part.sizes, part.strides), files)
    return value


def _read_strided(view: View, value: Tensor, files: Files) -> None:
    """Fill value along the dim with the longest stride, so many rows at once as a chunk holds."""
    import torch

    dim = view.outermost
    row_bytes = max(1, view.strides[dim] * item_bytes(view.dtype))
    rows = 1 if _is_read_by_rows(view, dim) else max(1, CHUNK_BYTES // row_bytes)
    if rows >= view.sizes[dim]:
        buffer = torch.empty(view.span_bytes, dtype=torch.uint8)
        read_bytes(view.part, view.offset, bytes_of(buffer), files)
        bits = torch_dtype(_BITS[value.element_size()])  # no NaN's payload, no odd bool is touched
        value.view(bits).copy_(buffer.view(bits).as_strided(view.sizes, view.strides))
        return
    for start in range(0, view.sizes[dim], rows):
        stop = min(start + rows, view.sizes[dim])
        piece = view.narrow(dim, start, stop)
        target = value.narrow(dim, start, stop - start)
        if piece.is_dense and target.is_contiguous():
            read_bytes(view.part, piece.offset, bytes_of(target), files)
        else:
            _read_strided(piece, target, files)


def read_bytes(part: Part, offset: int, buffer: memoryview, files: Files) -> None:
    """Fill buffer with the bytes from offset on of what part lies in."""
    if part.held is None:
        files.read_into(part.place, offset, buffer)
    else:
        buffer[:] = bytes_of(part.held)[offset : offset + len(buffer)]


def bytes_of(value: Tensor) -> memoryview:
    """The memory of a contiguous tensor with elements."""
    import torch

    array: Any = value.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
