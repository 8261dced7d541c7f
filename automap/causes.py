"""Names the cause of a divergence: an attribute, a constant, an op too many or too few, another wiring.

Comes in: the op where dest leaves src, with the src ops that read the same values. Goes out: one finding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automap.align.choices import Stop
from automap.align.divergence import (
    Divergence,
    Values,
    constant_operands,
    divergences,
    heard_by,
    is_mask,
    origin_ops,
    scalars,
)
from automap.align.solve import Solution
from automap.canonical.flow import Flow, Node, Role, site_of
from automap.findings import Code, Finding, Site

_ROOTS = {"rsqrt", "sqrt", "reciprocal", "div", "pow"}
_PADS = {"constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d"}


@dataclass(frozen=True, slots=True)
class _Cause:
    """A finding with how directly it explains a divergence: lower ranks come first."""

    rank: int
    finding: Finding


def explain_stop(solution: Solution, values: Values, stop: Stop) -> Finding | None:
    """Return the cause behind a stop, or None where the values do not show one."""
    causes: list[_Cause] = []
    for found in divergences(solution, values, stop):
        causes.extend(_causes(solution, found))
    if not causes:
        causes.extend(_direct(solution, values, stop))
    best = min(causes, key=lambda c: c.rank, default=None)
    return best.finding if best is not None else None


def _causes(solution: Solution, found: Divergence) -> list[_Cause]:
    dest, src = solution.dest.flow, solution.src.flow
    node = dest[found.node]
    same = [r for r in found.readers if src[r].op == node.op]
    causes = [c for r in same for c in _differences(solution, node, src[r])]
    causes += _unknown_tables(solution, node, found)
    if not same:
        causes += _unused_weights(solution, node, found)
        causes.append(_foreign(solution, node, found))
    elif not causes:
        causes.append(
            _Cause(
                7,
                _finding(
                    solution,
                    "rewired",
                    f"{_named(dest, node)} in dest reads other values than {_named(src, src[same[0]])} in src",
                    same[0],
                    node.index,
                ),
            )
        )
    return causes


def _differences(solution: Solution, mine: Node, theirs: Node) -> list[_Cause]:
    """What two ops of one kind with equal operands differ in."""
    dest = solution.dest.flow
    if mine.op == "matmul" and _count(mine.shape) != _count(theirs.shape):
        text = (
            f"the product has shape {list(theirs.shape)} in src and {list(mine.shape)} in dest: another "
            f"number of heads, or another view of the same width"
        )
        return [_Cause(0, _finding(solution, "shape-differs", text, theirs.index, mine.index))]
    found = []
    ours, others = scalars(mine), scalars(theirs)
    for name in dict.fromkeys([*others, *ours]):
        if ours.get(name) != others.get(name) and not (
            name in ("argument 1", "normalized shape") and isinstance(ours.get(name), tuple)
        ):
            label = _meaning(dest, mine, name, ours.get(name), others.get(name))
            text = f"{mine.op} {label} {others.get(name)} in src, {ours.get(name)} in dest"
            found.append(_Cause(1, _finding(solution, "attribute-differs", text, theirs.index, mine.index)))
    found += _weight_side(solution, mine, theirs)
    found += _tied(solution, mine, theirs) if mine.op in ("matmul", "convolution") else []
    return found or _other_constants(solution, mine, theirs)


def _weight_side(solution: Solution, mine: Node, theirs: Node) -> list[_Cause]:
    """What differs in how the weights that both ops take are computed from the stored ones."""
    dest, src = solution.dest.flow, solution.src.flow
    ours, others = _computed(dest, mine), _computed(src, theirs)
    found = []
    for a, b in zip(ours, others, strict=False):
        for name, value in scalars(a).items() if a.op == b.op else ():
            other = scalars(b).get(name)
            if isinstance(value, (int, float)) and value != other:
                text = (
                    f"{a.op} {_meaning(dest, a, name, value, other)} {other} in src, {value} in dest, in "
                    f"what becomes of `{_leaf_name(dest, a.index)}`"
                )
                found.append(_Cause(1, _finding(solution, "attribute-differs", text, b.index, a.index)))
    if not found and [n.op for n in ours] != [n.op for n in others]:
        text = (
            f"the weight goes through {_ops(others)} in src and through {_ops(ours)} in dest before it is "
            f"used (`{_leaf_name(dest, mine.index)}`)"
        )
        found.append(_Cause(2, _finding(solution, "attribute-differs", text, theirs.index, mine.index)))
    return found


def _computed(flow: Flow, node: Node) -> list[Node]:
    """The ops that compute with weights alone on the way to an op."""
    from automap.canonical.rules.layout import MOVES

    behind = flow.ancestors([i for i in node.operands if flow[i].role is Role.WEIGHT])
    return [
        flow[i]
        for i in sorted(behind)
        if flow[i].role is Role.WEIGHT and flow[i].op != "weight" and flow[i].op not in MOVES
    ]


def _leaf_name(flow: Flow, index: int) -> str:
    leaves = sorted(i for o in (index, *flow[index].operands) for i in _leaves(flow, o))
    return flow.weights[leaves[0]].name if leaves else ""


def _ops(nodes: list[Node]) -> str:
    return ", ".join(f"`{node.op}`" for node in nodes) or "nothing"


def _tied(solution: Solution, mine: Node, theirs: Node) -> list[_Cause]:
    """Dest uses a weight here that it uses elsewhere too; src has one of its own."""
    dest, src = solution.dest.flow, solution.src.flow
    ours = [w for i in mine.operands for w in _leaves(dest, i)]
    others = [w for i in theirs.operands for w in _leaves(src, i)]
    shared = [
        w
        for w in ours
        if len({n.index for n in dest.nodes if n.role is Role.ACTIVATION and w in _direct_leaves(dest, n)}) > 1
    ]
    if not shared or not others:
        return []
    text = (
        f"dest uses `{dest.weights[shared[0]].name}` here too (tied weights); src uses "
        f"`{src.weights[others[0]].name}`, a weight of its own"
    )
    return [_Cause(2, _finding(solution, "rewired", text, others[0], shared[0]))]


def _direct_leaves(flow: Flow, node: Node) -> set[int]:
    return {w for i in node.operands if flow[i].role is Role.WEIGHT for w in _leaves(flow, i)}


def _leaves(flow: Flow, index: int) -> list[int]:
    if flow[index].role is not Role.WEIGHT:
        return []
    return sorted(i for i in flow.ancestors([index]) if i in flow.weights)


def _other_constants(solution: Solution, mine: Node, theirs: Node) -> list[_Cause]:
    ours, others = constant_operands(solution.dest, mine), constant_operands(solution.src, theirs)
    found = []
    for (index, a), (_, b) in zip(ours, others, strict=False):
        if a.shape != b.shape or not torch.equal(torch.nan_to_num(a.double()), torch.nan_to_num(b.double())):
            what = _constant_name(solution.dest.flow, index, a)
            text = f"the {what} that {mine.op} takes holds other values in dest than in src"
            if a.shape[-1:] != b.shape[-1:]:
                text = (
                    f"the {what} that {mine.op} takes is {a.shape[-1]} wide in dest and {b.shape[-1]} in "
                    f"src: another head width, so another number of heads"
                )
                found.append(_Cause(0, _finding(solution, "shape-differs", text, theirs.index, mine.index)))
                continue
            found.append(_Cause(2, _finding(solution, "constant-differs", text, theirs.index, mine.index)))
    return found


def _unknown_tables(solution: Solution, node: Node, found: Divergence) -> list[_Cause]:
    """Dest computes with a table or mask whose values are none of src's constants."""
    causes = []
    for index, value in constant_operands(solution.dest, node):
        if value.numel() < 2:
            continue
        what = _constant_name(solution.dest.flow, index, value)
        if is_mask(value) and not any(_has_mask(solution, r) for r in found.readers):
            text = f"dest applies a {what} ({node.op}) to a value that src does not mask"
            causes.append(_Cause(1, _finding(solution, "op-extra", text, None, node.index)))
        elif not is_mask(value) and value.is_floating_point() and not _src_holds(solution, value):
            text = f"the {what} that dest computes with ({node.op}) holds values that src has in no constant"
            causes.append(
                _Cause(
                    2,
                    _finding(
                        solution, "constant-differs", text, found.readers[0] if found.readers else None, node.index
                    ),
                )
            )
    return causes


def _has_mask(solution: Solution, reader: int) -> bool:
    return any(is_mask(v) for _, v in constant_operands(solution.src, solution.src.flow[reader]))


def _src_holds(solution: Solution, value: Tensor) -> bool:
    """Whether src has a constant with the numbers of value, whatever their order and repetition."""
    wanted = torch.unique(value.double().reshape(-1))
    sample = wanted[torch.linspace(0, len(wanted) - 1, min(64, len(wanted))).long()]
    for node in solution.src.flow.nodes:
        if node.role is Role.CONSTANT:
            held = solution.src.run.value(node.index)
            if isinstance(held, Tensor) and held.numel() > 1:
                flat = torch.view_as_real(held).reshape(-1) if held.is_complex() else held.double().reshape(-1)
                if flat.numel() < 5_000_000 and bool(
                    (torch.cdist(sample.unsqueeze(1), torch.unique(flat).unsqueeze(1)).min(1).values < 1e-9).all()
                ):
                    return True
    return False


def _unused_weights(solution: Solution, node: Node, found: Divergence) -> list[_Cause]:
    """Src adds or multiplies a weight there that nothing in dest takes."""
    src = solution.src.flow
    causes = []
    for reader in found.readers:
        if src[reader].op in ("add", "mul"):
            for leaf in (w for i in src[reader].operands for w in _leaves(src, i)):
                kind = "bias" if src[reader].op == "add" else "scale"
                text = (
                    f"src {'adds' if kind == 'bias' else 'multiplies by'} `{src.weights[leaf].name}` "
                    f"({kind}) here; dest has no such weight and goes on with {node.op}"
                )
                causes.append(_Cause(3, _finding(solution, "unused-source", text, leaf, node.index)))
    return causes


def _foreign(solution: Solution, node: Node, found: Divergence) -> _Cause:
    """Dest applies an op to a value that src treats otherwise."""
    dest, src = solution.dest.flow, solution.src.flow
    numbers = ", ".join(
        f"{k} {v}" for k, v in scalars(node).items() if isinstance(v, (int, float)) and not isinstance(v, bool)
    )
    mine = _named(dest, node) + (f" ({_scalar_word(dest, node)}{numbers})" if numbers else "")
    theirs = ", ".join(dict.fromkeys(_named(src, src[r]) for r in found.readers)) or "nothing"
    text = f"dest applies {mine} to a value to which src applies {theirs}{_alone(node)}"
    return _Cause(5, _finding(solution, "op-extra", text, found.readers[0] if found.readers else None, node.index))


def _alone(node: Node) -> str:
    """What is to be said of a softmax that has one element to choose from."""
    if node.op != "softmax" or node.shape[node.args[1]] != 1:
        return ""
    return f"; over a dimension of one element ({node.args[1]}) it is always 1"


def _scalar_word(flow: Flow, node: Node) -> str:
    return "scale " if node.op in ("mul", "div") else ""


def _direct(solution: Solution, values: Values, stop: Stop) -> list[_Cause]:
    """Dest's weight meets a value that src has, but src does something else with it."""
    dest, src = solution.dest.flow, solution.src.flow
    node = dest[stop.node]
    operands = [i for i in node.operands if dest[i].role is Role.ACTIVATION]
    partners = [p for i in operands if (p := _deep_partner(dest, values, i)) is not None]
    readers = list(dict.fromkeys(r for p in partners for r in heard_by(src, p)))
    uses = [r for r in readers if src[r].op == node.op]
    if uses and stop.weight is not None:
        widths = sorted({src[r].shape[-1] if node.op == "matmul" else src[r].shape[1] for r in uses})
        mine = node.shape[-1] if node.op == "matmul" else node.shape[1]
        if mine not in widths or _kernel(src, src[uses[0]]) != _kernel(dest, node):
            leaf = _leaves(dest, stop.weight)[0]
            elsewhere = [
                f
                for f in solution.src.linear
                if f.kind == "matmul"
                and node.op == "matmul"
                and f.width == mine
                and f.columns.shape[1] == dest[operands[0]].shape[-1]
            ]
            if elsewhere:
                other = _leaf_name(src, elsewhere[-1].node)
                text = (
                    f"{_named(dest, node)} reads in dest what {_named(src, src[uses[0]])} reads in src; "
                    f"src weights of that shape, such as `{other}`, read other values"
                )
                return [_Cause(0, _finding(solution, "rewired", text, uses[0], stop.node))]
            text = (
                f"`{dest.weights[leaf].name}` has {mine} outputs{_kernel_text(dest, node)}; src applies "
                f"weights with {', '.join(map(str, widths))}{_kernel_text(src, src[uses[0]])} to the same "
                f"value (another width, or number of heads)"
            )
            return [_Cause(0, _finding(solution, "shape-differs", text, uses[0], leaf))]
    others = [r for r in readers if src[r].op != node.op]
    if others:
        text = f"src applies {_named(src, src[others[0]])} to the value that dest's {_named(dest, node)} reads directly"
        return [_Cause(4, _finding(solution, "op-missing", text, others[0], stop.node))]
    return []


def _kernel(flow: Flow, node: Node) -> tuple[int, ...]:
    return tuple(flow[node.operands[1]].shape[2:]) if node.op == "convolution" else ()


def _kernel_text(flow: Flow, node: Node) -> str:
    return f" and a {'x'.join(map(str, _kernel(flow, node)))} kernel" if node.op == "convolution" else ""


def _deep_partner(flow: Flow, values: Values, index: int) -> int | None:
    from automap.canonical.rules.layout import MOVES

    while values.partner(index) is None and flow[index].op in MOVES:
        operands = [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]
        if len(operands) != 1:
            return None
        index = operands[0]
    return values.partner(index)


def _meaning(flow: Flow, node: Node, name: str, mine: Any, theirs: Any) -> str:
    """What a number without a name is for, from what it meets."""
    if not name.startswith("argument"):
        return name
    readers = [flow[r].op for r in flow.readers.get(node.index, ())]
    if node.op == "add" and any(op in _ROOTS for op in readers):
        return "eps"
    if node.op in ("mul", "div"):
        return "scale"
    if node.op == "gelu":
        return "approximate"
    return name


def _constant_name(flow: Flow, index: int, value: Tensor) -> str:
    if is_mask(value):
        square = value.dim() >= 2 and value.shape[-1] == value.shape[-2] and value.shape[-1] > 1
        blocked = value if value.dtype == torch.bool else value == 0
        flat = blocked.reshape(-1, *value.shape[-2:])[0] if square else None
        return "causal mask" if flat is not None and torch.equal(flat, torch.ones_like(flat).tril()) else "mask"
    made = origin_ops(flow, index)
    waves = [op for op in made if op in ("cos", "sin", "polar", "exp")]
    return f"table of {'/'.join(waves)} (positions, rotary frequencies)" if waves else "constant table"


def _named(flow: Flow, node: Node) -> str:
    path = node.origin.meta.get("module_path", "") if node.origin is not None else ""
    return f"`{node.op}`{f' in {path}' if path else ''}"


def _finding(solution: Solution, code: Code, text: str, src: int | None, dest: int | None) -> Finding:
    theirs: Site | None = site_of(solution.src.flow, src) if src is not None else None
    mine = site_of(solution.dest.flow, dest) if dest is not None else None
    return Finding(code, text, theirs, mine)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
