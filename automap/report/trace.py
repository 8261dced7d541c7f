"""A capture for people and programs: a table, JSON (schema "automap-trace/1") or GraphML.

One entry for each input, weight, constant and ATen call, in the order they ran: what it is, what it reads, the shape
and dtype of what it gives, and the module and line of the user's code that ran it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from automap.inputs import short_dtype, short_size
from automap.report.model import short_path

if TYPE_CHECKING:
    from torch import fx

    from automap.capture import Capture

SCHEMA = "automap-trace/1"
Form = Literal["table", "json", "graphml"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One node: `kind` is "input", "weight", "constant", "call" or "output"; `args` are the names of nodes it reads.

    `text` is the call with all its arguments, or what the leaf is called in the model.
    """

    name: str
    kind: str
    target: str
    args: tuple[str, ...]
    text: str
    shape: tuple[int, ...] | None
    dtype: str
    module: str
    file: str
    line: int


def trace_text(capture: Capture, *, form: Form = "table") -> str:
    """Return capture in one of the three forms, ending with a newline."""
    entries = trace_entries(capture)
    match form:
        case "table":
            return _table(entries) + f"{capture.op_count} calls, {capture.method} over {capture.mode} tensors\n"
        case "json":
            head = {"schema": SCHEMA, "model": capture.model_name, "method": capture.method, "mode": capture.mode}
            return json.dumps({**head, "nodes": [asdict(entry) for entry in entries]}, indent=1) + "\n"
        case "graphml":
            return _graphml(entries)


def trace_entries(capture: Capture) -> tuple[Entry, ...]:
    """Return one entry for each node of capture's graph, in order."""
    return tuple(_entry(capture, node) for node in capture.graph.nodes)


def _entry(capture: Capture, node: fx.Node) -> Entry:
    shape, dtype = node.meta.get("shape"), node.meta.get("dtype")
    target = _target(capture, node)
    return Entry(
        name=node.name,
        kind=_kind(capture, node),
        target=target,
        args=tuple(arg.name for arg in node.all_input_nodes),
        text=f"{target}({_arguments(node)})" if node.op == "call_function" else target,
        shape=tuple(shape) if shape is not None else None,
        dtype=short_dtype(dtype) if dtype is not None else "",
        module=node.meta.get("module_path", ""),
        file=short_path(node.meta.get("file") or ""),
        line=node.meta.get("line") or 0,
    )


def _kind(capture: Capture, node: fx.Node) -> str:
    if node.op == "get_attr":
        return "weight" if node.name in capture.weights else "constant"
    return {"placeholder": "input", "output": "output"}.get(node.op, "call")


def _target(capture: Capture, node: fx.Node) -> str:
    if node.name in capture.weights:
        return " = ".join(capture.weights[node.name].names)
    name = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.removeprefix("aten.")


def _arguments(node: fx.Node) -> str:
    words = [*map(_argument, node.args), *(f"{key}={_argument(value)}" for key, value in node.kwargs.items())]
    return ", ".join(words)


def _argument(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_argument, value))}]"
    return str(value).removeprefix("torch.")


def _table(entries: Sequence[Entry]) -> str:
    rows = [_cells(entry) for entry in entries if entry.kind != "output"]
    widths = [min(max(map(len, column)), 48) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "".join(f"{line}\n" for line in lines)


def _cells(entry: Entry) -> tuple[str, ...]:
    size = short_size(entry.dtype, entry.shape) if entry.shape is not None else ""
    what = entry.text if entry.kind == "call" else f"{entry.kind} {entry.text}"
    return entry.name, what, size, entry.module, f"{entry.file}:{entry.line}" if entry.file else ""


def _graphml(entries: Sequence[Entry]) -> str:
    import networkx

    graph = networkx.MultiDiGraph()
    for entry in entries:
        values = {key: value for key, value in asdict(entry).items() if key not in ("name", "args", "shape")}
        graph.add_node(entry.name, **values, shape="x".join(map(str, entry.shape or ())))
        graph.add_edges_from((arg, entry.name, {"port": port}) for port, arg in enumerate(entry.args))
    return "\n".join(networkx.generate_graphml(graph)) + "\n"
