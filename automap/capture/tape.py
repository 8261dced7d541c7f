"""The graph under construction, and the books that say which node holds the value of which tensor.

Tensors and storages are known by their addresses inside torch; a weak reference to each keeps its address from being
used again, so that memory is freed as in an ordinary forward. What is written in place becomes a piece of its storage,
and whoever reads the storage afterwards, under whatever view, reads the pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from automap.capture.result import Weight, storage_key
from automap.capture.structure import tensors_in
from automap.inputs import Inputs

aten = torch.ops.aten
_NO_NAME = re.compile("[^0-9a-zA-Z_]+")
_INDEX, _INDEX_LIMIT = (torch.int64, torch.int32), 100_000  # numbers that may choose rows are kept with their node


class Geometry(NamedTuple):
    """How a tensor lies on its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Geometry:
        """Return that of a strided tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    @property
    def span(self) -> tuple[int, int]:
        """The first byte, and the one past the last."""
        size = self.dtype.itemsize
        if 0 in self.shape:
            return self.offset * size, self.offset * size
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.offset * size, (self.offset + last + 1) * size

    @property
    def is_dense(self) -> bool:
        """Whether every byte between the first and the last belongs to it, once."""
        first, end = self.span
        return prod(self.shape) * self.dtype.itemsize == end - first and self.has_distinct_elements

    @property
    def has_distinct_elements(self) -> bool:
        """Whether no element is seen twice, as in an expanded tensor."""
        return all(step or n == 1 for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_row_major(self) -> bool:
        """Whether its elements lie in order, without gaps."""
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != expected:
                return False
            expected *= n
        return True

    def covers(self, other: Geometry) -> bool:
        """Whether all of other's elements are certainly among its own."""
        if self == other:
            return True
        first, end = self.span
        other_first, other_end = other.span
        return first <= other_first and other_end <= end and self.is_dense

    def meets(self, other: Geometry) -> bool:
        """Whether the two may have bytes in common."""
        first, end = self.span
        other_first, other_end = other.span
        return first < other_end and other_first < end


class Piece(NamedTuple):
    """Part of a storage's content: what lies at geometry is the value of node."""

    node: fx.Node
    geometry: Geometry


@dataclass(slots=True)
class Storage:
    """The content of one storage as pieces, a later one over the earlier, and how often it was written."""

    size_bytes: int
    alive: Any
    pieces: list[Piece] = field(default_factory=list)
    version: int = 0
    flat: fx.Node | None = None
    folded: int = 0


class Known(NamedTuple):
    """The node that holds a tensor's value as of a version of its storage; one that is not strided has no stride."""

    node: fx.Node
    storage: int
    version: int
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    alive: Any


class Tape:
    """The graph, its leaves, and what is known of every tensor seen.

    `tensors` pairs each weight with the tensor that stands for it in this run; `value_of` gives the value that a
    tensor from outside the recording is kept with.
    """

    def __init__(self, tensors: Iterable[tuple[Weight, Tensor]], value_of: Callable[[Tensor], Tensor]) -> None:
        self.graph = fx.Graph()
        self.value_of = value_of
        self.used: dict[str, Weight] = {}
        self.constants: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.path: list[str] = [""]
        self.line: tuple[str, int] | None = None
        self.is_data_dependent = False
        self._known: dict[int, Known] = {}
        self._storages: dict[int, Storage] = {}
        self._learned: set[fx.Node] = set()
        self._names: dict[Any, str] = {}
        self._weights: dict[int, list[tuple[Weight, Tensor]]] = {}
        for weight, tensor in tensors:
            self._weights.setdefault(storage_key(tensor), []).append((weight, tensor))

    def take(self, given: Inputs, own: Inputs) -> None:
        """Add a placeholder for every tensor of the inputs; own is what they are in this run."""
        mine = tensors_in({"args": own.args, "kwargs": dict(own.kwargs)})
        for (path, tensor), (_, stand_in) in zip(
            tensors_in({"args": given.args, "kwargs": dict(given.kwargs)}), mine, strict=True
        ):
            self._placeholder(path.replace(".", "_"), stand_in, tensor)

    def _placeholder(self, name: str, tensor: Tensor, given: Tensor) -> None:
        node = self.graph.placeholder(name)
        self.inputs[node.name] = given
        self.annotate(node, given if given.device.type != "meta" else tensor)
        self.remember(tensor, node)

    def constant(self, tensor: Tensor) -> fx.Node:
        """Add a constant of tensor's present value."""
        name = f"constant_{len(self.constants)}"
        node = self.graph.create_node("get_attr", name, name=name)
        self.constants[node.name] = value = self.value_of(tensor)
        self.annotate(node, value)
        return node

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, name: str | None = None
    ) -> fx.Node:
        """Add a call, marked as learned where it reads something learned."""
        name = name or self._names.get(target)
        if name is None:
            name = self._names[target] = _NO_NAME.sub("_", self.graph._target_to_str(target))
        node = self.graph.create_node("call_function", target, name=name)
        # set afterwards, as properties: create_node would search all of them for symbolic numbers, and setting an
        # attribute of a node takes it out of the graph's tables and puts it in again
        object.__setattr__(node, "args", args)
        if kwargs:
            object.__setattr__(node, "kwargs", kwargs)
        if not self._learned.isdisjoint(node._input_nodes):
            self._learned.add(node)
        node.meta["module_path"] = self.path[-1]
        return node

    def is_learned(self, node: fx.Node) -> bool:
        """Whether a weight is behind a node."""
        return node in self._learned

    def derive(self, target: Any, args: tuple[Any, ...], geometry: Geometry, **kwargs: Any) -> fx.Node:
        """Add a call that nobody made, to keep aliases right."""
        node = self.call(target, args, kwargs)
        node.meta |= {"shape": geometry.shape, "dtype": geometry.dtype}
        return node

    def annotate(self, node: fx.Node, value: Tensor) -> None:
        """Note shape, dtype and module with node, and the numbers of small tables of positions."""
        meta = node.meta
        meta["shape"], meta["dtype"] = tuple(value.shape), value.dtype
        meta["module_path"] = self.path[-1]
        if value.dtype in _INDEX and 2 <= value.numel() <= _INDEX_LIMIT:
            known = self.value_of(value)
            if known.device.type != "meta" and type(known) is Tensor:
                meta["value"] = known

    def read_by_python(self, tensor: Tensor) -> None:
        """Note that Python reads tensor's value, and may go another way with other weights."""
        known = self._known.get(tensor._cdata)
        is_learned = known.node in self._learned if known is not None else storage_key(tensor) in self._weights
        self.is_data_dependent = self.is_data_dependent or is_learned

    def remember(self, tensor: Tensor, node: fx.Node) -> fx.Node:
        """Let node hold tensor's value as of now."""
        key = storage_key(tensor)
        if tensor.layout != torch.strided:
            self._known[tensor._cdata] = Known(node, key, 0, tuple(tensor.shape), None, hold(tensor))
            return node
        storage = self._storages.get(key)
        if storage is None:
            storage = self._open(key, tensor)
        if not storage.pieces:
            storage.pieces.append(Piece(node, Geometry.of(tensor)))
        alive = hold(tensor)
        known = Known(node, key, storage.version, tuple(tensor.shape), tensor.stride(), alive)
        self._known[tensor._cdata] = known
        return node

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node that holds tensor's value now, after all in-place writes to its storage."""
        known = self._known.get(tensor._cdata)
        key = storage_key(tensor)
        if known is None or known.storage != key:
            return self._leaf(tensor, key)
        if known.stride is None:
            return known.node
        is_moved = known.shape != tensor.shape or known.stride != tensor.stride()
        storage = self._storages[key]
        if known.version == storage.version and not is_moved:
            return known.node
        return self.remember(tensor, self._seen(tensor, storage))

    def holder(self, tensor: Tensor) -> fx.Node | None:
        """Return the node that tensor or, where it is a view, its storage was last known by, or None."""
        key = storage_key(tensor)
        known, storage = self._known.get(tensor._cdata), self._storages.get(key)
        if known is not None and known.storage == key and (storage is None or known.version == storage.version):
            return known.node
        if storage is not None and storage.pieces:
            return storage.pieces[-1].node
        return self.node(tensor) if key in self._weights else None

    def write(self, tensor: Tensor, result: fx.Node) -> None:
        """Let result be tensor's value from now on, and be seen through every alias of its storage."""
        key, geometry = storage_key(tensor), Geometry.of(tensor)
        storage = self._storages.get(key) or self._open(key, tensor)
        size_bytes = tensor.untyped_storage().nbytes()
        first, end = geometry.span
        is_whole = first == 0 and end >= min(size_bytes, storage.size_bytes) and geometry.is_dense
        if is_whole or size_bytes != storage.size_bytes:
            storage.pieces, storage.flat, storage.folded, storage.size_bytes = [], None, 0, size_bytes
        storage.pieces.append(Piece(result, geometry))
        storage.version += 1
        self.remember(tensor, result)

    def _open(self, key: int, tensor: Tensor) -> Storage:
        untyped = tensor.untyped_storage()
        storage = Storage(untyped.nbytes(), _Alive(untyped))
        self._storages[key] = storage
        return storage

    def _leaf(self, tensor: Tensor, key: int) -> fx.Node:
        """A node for a tensor never seen as a result: a weight, another view of a known storage, or a constant."""
        if tensor.layout != torch.strided:
            mine = next((w for w, t in self._weights.get(key, ()) if t._cdata == tensor._cdata), None)
            return self.remember(tensor, self._weight(mine, tensor) if mine else self.constant(tensor))
        geometry = Geometry.of(tensor)
        storage = self._storages.get(key) or self._open(key, tensor)
        owner = next(((w, t) for w, t in self._weights.get(key, ()) if Geometry.of(t).covers(geometry)), None)
        if owner is not None:
            self._place(storage, owner[1], lambda: self._weight(*owner))
        elif not any(piece.geometry.covers(geometry) for piece in storage.pieces):
            self._place(storage, tensor, lambda: self.constant(tensor))
        known = self._known.get(tensor._cdata)
        if known is not None and known.storage == key and known.version == storage.version:
            return known.node
        return self.remember(tensor, self._seen(tensor, storage))

    def _place(self, storage: Storage, tensor: Tensor, make: Callable[[], fx.Node]) -> None:
        """Make tensor's own value a piece of its storage below all that was written, unless it is one already."""
        known = self._known.get(tensor._cdata)
        key = storage_key(tensor)
        if known is None or known.storage != key:
            node, geometry = make(), Geometry.of(tensor)
            storage.pieces.insert(0, Piece(node, geometry))
            storage.flat, storage.folded = None, 0
            alive = hold(tensor)
            self._known[tensor._cdata] = Known(node, key, 0, geometry.shape, geometry.stride, alive)

    def _weight(self, weight: Weight, tensor: Tensor) -> fx.Node:
        name = f"weight_{len(self.used)}"
        node = self.graph.create_node("get_attr", name, name=name)
        self.used[node.name] = weight
        self.annotate(node, tensor)
        if weight.tensor.is_floating_point() or weight.tensor.is_complex():
            self._learned.add(node)
        return node

    def _seen(self, tensor: Tensor, storage: Storage) -> fx.Node:
        """What tensor sees of its storage's present content."""
        geometry = Geometry.of(tensor)
        node = self._cut(storage, geometry)
        if tensor.is_conj():
            node = self.derive(aten._conj.default, (node,), geometry)
        if tensor.is_neg():
            node = self.derive(aten._neg_view.default, (node,), geometry)
        return node

    def _cut(self, storage: Storage, geometry: Geometry) -> fx.Node:
        """The part of a storage that lies at geometry: from the last piece that has to do with it, if it has it all."""
        piece = next((p for p in reversed(storage.pieces) if p.geometry.meets(geometry)), None)
        if piece is None and storage.pieces and storage.pieces[-1].geometry == geometry:
            piece = storage.pieces[-1]  # without elements
        if piece is not None and piece.geometry.dtype == geometry.dtype and piece.geometry.covers(geometry):
            if piece.geometry == geometry:
                return piece.node
            if piece.geometry.is_row_major:
                return self._window(piece.node, piece.geometry, geometry)
        flat = self._flat(storage, geometry.dtype)
        return self.derive(aten.as_strided.default, (flat, *map(list, geometry[:2]), geometry.offset), geometry)

    def _window(self, node: fx.Node, base: Geometry, geometry: Geometry) -> fx.Node:
        """What lies at geometry within a row-major base."""
        if geometry.is_row_major and prod(geometry.shape) == prod(base.shape):
            return self.derive(aten.reshape.default, (node, list(geometry.shape)), geometry)
        offset = geometry.offset - base.offset
        if len(base.shape) != 1:
            line = Geometry((prod(base.shape),), (1,), 0, base.dtype)
            node = self.derive(aten.reshape.default, (node, [-1]), line)
        return self.derive(aten.as_strided.default, (node, *map(list, geometry[:2]), offset), geometry)

    def _flat(self, storage: Storage, dtype: torch.dtype) -> fx.Node:
        """A 1-d node with all of a storage's content, in storage order, as numbers of dtype."""
        pieces = storage.pieces
        flat = storage.flat
        if flat is None:
            flat = self._ground(storage, pieces[0], dtype)
            storage.folded = 1
        for piece in pieces[storage.folded :]:
            geometry = piece.geometry
            flat = self._as(flat, storage, geometry.dtype)
            args = (flat, piece.node, *map(list, geometry[:2]), geometry.offset)
            flat = self.derive(aten.as_strided_scatter.default, args, _line(storage, geometry.dtype))
        storage.flat, storage.folded = flat, len(pieces)
        return self._as(flat, storage, dtype)

    def _ground(self, storage: Storage, piece: Piece, dtype: torch.dtype) -> fx.Node:
        """The lowest piece as a flat storage, with zeros around it."""
        geometry = piece.geometry
        line = _line(storage, geometry.dtype)
        first, end = geometry.span
        if geometry.is_row_major and first == 0 and end == line.span[1]:
            return self.derive(aten.reshape.default, (piece.node, [-1]), line)
        zeros = self.derive(aten.zeros.default, (list(line.shape),), line, dtype=geometry.dtype)
        args = (zeros, piece.node, *map(list, geometry[:2]), geometry.offset)
        return self.derive(aten.as_strided_scatter.default, args, line)

    def _as(self, flat: fx.Node, storage: Storage, dtype: torch.dtype) -> fx.Node:
        if flat.meta["dtype"] == dtype:
            return flat
        return self.derive(aten.view.dtype, (flat, dtype), _line(storage, dtype))


def hold(tensor: Tensor) -> Any:
    """Return what keeps tensor's address from being used again, without keeping its memory."""
    return torch._C._WeakTensorRef(tensor)  # type: ignore[attr-defined]


def _line(storage: Storage, dtype: torch.dtype) -> Geometry:
    return Geometry((storage.size_bytes // dtype.itemsize,), (1,), 0, dtype)


class _Alive:
    """Keeps the address of a storage from being used again, without keeping its memory."""

    __slots__ = ("handle",)

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.handle = storage._weak_ref()

    def __del__(self) -> None:
        torch.UntypedStorage._free_weak_ref(self.handle)  # type: ignore[no-untyped-call]
