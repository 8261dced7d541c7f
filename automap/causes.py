"""Names the cause of a divergence: an attribute, a constant, an op too many or too few, another wiring.

Comes in: the op where dest leaves src, with the src ops that read the same values. Goes out: one finding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from automap.align.choices import Stop
from automap.align.divergence import (
    Divergence,
    Values,
    constant_operands,
    divergences,
    had_operands,
    heard_by,
    is_mask,
    scalars,
)
from automap.align.solve import Solution
from automap.between import PRODUCTS, detour, heard_ops, laid_out, way_text
from automap.canonical.flow import Flow, Node, Role
from automap.findings import Finding
from automap.naming import Cause, cause_finding, constant_name, count_of, leaf_name, leaves_of, meaning_of, named
from automap.wiring import other_steps, readers_text, rewired, routes, same_width_elsewhere, unfinished, unused_weights


def explain_stop(solution: Solution, values: Values, stop: Stop) -> Finding | None:
    """Return the cause behind a stop, or None where the values do not show one."""
    causes: list[Cause] = []
    for found in divergences(solution, values, stop):
        causes.extend(_causes(solution, values, found))
    if not causes:
        causes.extend(_direct(solution, values, stop))
    best = min(causes, key=lambda c: c.rank, default=None)
    return best.finding if best is not None else None


def _causes(solution: Solution, values: Values, found: Divergence) -> list[Cause]:
    dest, src = solution.dest.flow, solution.src.flow
    node = dest[found.node]
    same = [r for r in found.readers if src[r].op == node.op]
    same = [r for r in same if _arity(src, src[r]) == _arity(dest, node)] or same
    causes = [c for r in same for c in _differences(solution, node, src[r])]
    tables = _unknown_tables(solution, node, found)
    is_common = node.op in ("add", *PRODUCTS)  # there is one everywhere: that src has it further on says nothing
    steps = [] if causes or (same and is_common) else other_steps(solution, node, found, is_alone=not same)
    causes += [s for s in steps if s.finding.code == "op-missing"] or tables or steps
    if not same:
        causes += _unused_weights(solution, node, found)
        causes.append(_foreign(solution, node, found))
    elif not causes:
        causes.append(rewired(solution, values, found, same[0]))
    return causes


def _arity(flow: Flow, node: Node) -> int:
    """How many values that flow through the model an op takes."""
    return sum(flow[i].role is Role.ACTIVATION for i in node.operands)


def _differences(solution: Solution, mine: Node, theirs: Node) -> list[Cause]:
    """What two ops of one kind with equal operands differ in."""
    if mine.op == "matmul" and count_of(mine.shape) != count_of(theirs.shape):
        return _shapes(solution, mine, theirs)
    found = _attributes(solution, mine, theirs)
    if found and _is_split_otherwise(mine, theirs):
        text = (
            f"what {mine.op} takes has shape {list(theirs.shape)} in src and {list(mine.shape)} in dest: another "
            f"number of heads ({'; '.join(cause.finding.message for cause in found)})"
        )
        return [Cause(0, cause_finding(solution, "shape-differs", text, theirs.index, mine.index))]
    found += _weight_side(solution, mine, theirs)
    found += _tied(solution, mine, theirs) if mine.op in ("matmul", "convolution") else []
    return found or _other_constants(solution, mine, theirs)


def _is_split_otherwise(mine: Node, theirs: Node) -> bool:
    """Whether two ops on single elements take one width in another number of pieces."""
    if mine.op not in ("mul", "div") or len(mine.shape) != len(theirs.shape) or len(mine.shape) < 4:
        return False
    return count_of(mine.shape) == count_of(theirs.shape) and sorted(mine.shape) != sorted(theirs.shape)


def _shapes(solution: Solution, mine: Node, theirs: Node) -> list[Cause]:
    """Two products of different size with equal operands, unless all that is made of the value is of one size.

    With as many columns each, one side has more rows at once: all steps of a loop, rows that no expert gets.
    """
    widths = _widths(solution, mine, theirs)
    if widths is not None and (widths[0] == widths[1] or mine.shape[-1] == theirs.shape[-1]):
        return []
    other = same_width_elsewhere(solution, mine, theirs)
    if other is not None:
        return [other]
    text = (
        f"the product has shape {list(theirs.shape)} in src and {list(mine.shape)} in dest: another "
        f"number of heads, or another view of the same width"
    )
    return [Cause(0, cause_finding(solution, "shape-differs", text, theirs.index, mine.index))]


def _widths(solution: Solution, mine: Node, theirs: Node) -> tuple[int, int] | None:
    """How many columns dest and src make of a value by all products with weights; None where no weight is used."""
    dest, src = solution.dest.flow, solution.src.flow
    if not any(dest[i].role is Role.WEIGHT for i in mine.operands):
        return None
    data = next((i for i in mine.operands if dest[i].role is Role.ACTIVATION), None)
    if data is None:
        return None
    base, _ = laid_out(solution.dest, data)
    origin, _ = laid_out(solution.src, next(i for i in theirs.operands if src[i].role is Role.ACTIVATION))
    return _columns(dest, heard_ops(dest, base)), _columns(src, heard_ops(src, origin))


def _columns(flow: Flow, nodes: list[Node]) -> int:
    products = [n for n in nodes if n.op == "matmul" and any(flow[i].role is Role.WEIGHT for i in n.operands)]
    return sum(n.shape[-1] for n in {n.index: n for n in products}.values())


def _attributes(solution: Solution, mine: Node, theirs: Node) -> list[Cause]:
    """The numbers and flags in which two ops of one kind differ."""
    found = []
    ours, others = scalars(mine), scalars(theirs)
    for name in dict.fromkeys([*others, *ours]):
        if ours.get(name) != others.get(name) and not (
            name in ("argument 1", "normalized shape", "output size") and isinstance(ours.get(name), tuple)
        ):
            label = meaning_of(solution.dest.flow, mine, name, ours.get(name), others.get(name))
            text = f"{mine.op} {label} {others.get(name)} in src, {ours.get(name)} in dest"
            found.append(Cause(1, cause_finding(solution, "attribute-differs", text, theirs.index, mine.index)))
    return found


def _weight_side(solution: Solution, mine: Node, theirs: Node) -> list[Cause]:
    """What differs in how the weights that both ops take are computed from the stored ones."""
    dest, src = solution.dest.flow, solution.src.flow
    ours, others = _computed(dest, mine), _computed(src, theirs)
    found = []
    for a, b in zip(ours, others, strict=False):
        for name, value in scalars(a).items() if a.op == b.op else ():
            other = scalars(b).get(name)
            if isinstance(value, (int, float)) and value != other:
                text = (
                    f"{a.op} {meaning_of(dest, a, name, value, other)} {other} in src, {value} in dest, in "
                    f"what becomes of `{leaf_name(dest, a.index)}`"
                )
                found.append(Cause(1, cause_finding(solution, "attribute-differs", text, b.index, a.index)))
    if not found and [n.op for n in ours] != [n.op for n in others]:
        text = (
            f"the weight goes through {_ops(others)} in src and through {_ops(ours)} in dest before it is "
            f"used (`{leaf_name(dest, mine.index)}`)"
        )
        found.append(Cause(2, cause_finding(solution, "attribute-differs", text, theirs.index, mine.index)))
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


def _ops(nodes: list[Node]) -> str:
    return ", ".join(f"`{node.op}`" for node in nodes) or "nothing"


def _tied(solution: Solution, mine: Node, theirs: Node) -> list[Cause]:
    """Dest uses a weight here that it uses elsewhere too; src has one of its own."""
    dest, src = solution.dest.flow, solution.src.flow
    ours = [w for i in mine.operands for w in leaves_of(dest, i)]
    others = [w for i in theirs.operands for w in leaves_of(src, i)]
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
    return [Cause(2, cause_finding(solution, "rewired", text, others[0], shared[0]))]


def _direct_leaves(flow: Flow, node: Node) -> set[int]:
    return {w for i in node.operands if flow[i].role is Role.WEIGHT for w in leaves_of(flow, i)}


def _other_constants(solution: Solution, mine: Node, theirs: Node) -> list[Cause]:
    ours, others = constant_operands(solution.dest, mine), constant_operands(solution.src, theirs)
    found = []
    for (index, a), (_, b) in zip(ours, others, strict=False):
        if a.shape != b.shape or not torch.equal(torch.nan_to_num(a.double()), torch.nan_to_num(b.double())):
            what = constant_name(solution.dest.flow, index, a)
            text = f"the {what} that {mine.op} takes holds other values in dest than in src"
            if a.shape[-1:] != b.shape[-1:]:
                text = (
                    f"the {what} that {mine.op} takes is {a.shape[-1]} wide in dest and {b.shape[-1]} in "
                    f"src: another head width, so another number of heads, or another part of each head"
                )
                found.append(Cause(0, cause_finding(solution, "shape-differs", text, theirs.index, mine.index)))
                continue
            found.append(Cause(2, cause_finding(solution, "constant-differs", text, theirs.index, mine.index)))
    return found


def _unknown_tables(solution: Solution, node: Node, found: Divergence) -> list[Cause]:
    """Dest computes with a table or mask whose values are none of src's constants."""
    causes = []
    for index, value in constant_operands(solution.dest, node):
        if value.numel() < 2:
            continue
        what = constant_name(solution.dest.flow, index, value)
        if is_mask(value) and not any(_has_mask(solution, r) for r in found.readers):
            text = f"dest applies a {what} ({node.op}) to a value that src does not mask"
            causes.append(Cause(1, cause_finding(solution, "op-extra", text, None, node.index)))
        elif not is_mask(value) and value.is_floating_point() and not _src_holds(solution, value):
            text = f"the {what} that dest computes with ({node.op}) holds values that src has in no constant"
            causes.append(
                Cause(
                    2,
                    cause_finding(
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


def _unused_weights(solution: Solution, node: Node, found: Divergence) -> list[Cause]:
    """Src adds or multiplies a weight there that nothing in dest takes."""
    return [cause for reader in found.readers for cause in unused_weights(solution, node, reader)]


def _foreign(solution: Solution, node: Node, found: Divergence) -> Cause:
    """Dest applies an op to a value that src treats otherwise."""
    dest, src = solution.dest.flow, solution.src.flow
    numbers = ", ".join(
        f"{k} {v}" for k, v in scalars(node).items() if isinstance(v, (int, float)) and not isinstance(v, bool)
    )
    mine = named(dest, node) + (f" ({_scalar_word(dest, node)}{numbers})" if numbers else "")
    text = f"dest applies {mine} to a value to which src applies {readers_text(src, found)}{_alone(node)}"
    rank = 0 if _alone(node) else 5
    return Cause(
        rank, cause_finding(solution, "op-extra", text, found.readers[0] if found.readers else None, node.index)
    )


def _alone(node: Node) -> str:
    """What is to be said of a softmax that has one element to choose from."""
    if node.op != "softmax" or node.shape[node.args[1]] != 1:
        return ""
    return f"; over a dimension of one element ({node.args[1]}) it is always 1"


def _scalar_word(flow: Flow, node: Node) -> str:
    return "scale " if node.op in ("mul", "div") else ""


def _direct(solution: Solution, values: Values, stop: Stop) -> list[Cause]:
    """Dest's weight meets a value that src has, but src does something else with it."""
    dest, src = solution.dest.flow, solution.src.flow
    node = dest[stop.node]
    if stop.reason == "output":
        return unfinished(solution, values, stop.node)
    partners = [p for _, p in had_operands(solution, values, stop.node)]
    readers = list(dict.fromkeys(r for p in partners for r in heard_by(src, p)))
    uses = [r for r in readers if src[r].op == node.op]
    if uses and stop.weight is not None:
        widths = sorted({src[r].shape[-1] if node.op == "matmul" else src[r].shape[1] for r in uses})
        mine = node.shape[-1] if node.op == "matmul" else node.shape[1]
        if mine not in widths or _kernel(src, src[uses[0]]) != _kernel(dest, node):
            return [_other_width(solution, stop.weight, node, uses, widths)]
        found = _attributes(solution, node, src[uses[0]]) if node.op == "convolution" else []
        route = routes(solution, values, node, src[uses[0]])
        if found or route is not None:
            return [*found, *([route] if route is not None else [])]
    others = [r for r in readers if src[r].op != node.op]
    if others:
        way = detour(src, src[others[0]], lambda n: n.op == node.op) or [src[others[0]]]
        text = f"src applies {way_text(way)} to the value that dest's {named(dest, node)} reads directly"
        return [Cause(4, cause_finding(solution, "op-missing", text, others[0], stop.node))]
    return []


def _other_width(solution: Solution, weight: int, node: Node, uses: list[int], widths: list[int]) -> Cause:
    """Src applies weights of another width or kernel to the value."""
    dest, src = solution.dest.flow, solution.src.flow
    elsewhere = same_width_elsewhere(solution, node, src[uses[0]]) if node.op == "matmul" else None
    if elsewhere is not None:
        return elsewhere
    leaf = leaves_of(dest, weight)[0]
    mine = node.shape[-1] if node.op == "matmul" else node.shape[1]
    text = (
        f"`{dest.weights[leaf].name}` has {mine} outputs{_kernel_text(dest, node)}; src applies "
        f"weights with {', '.join(map(str, widths))}{_kernel_text(src, src[uses[0]])} to the same "
        f"value (another width, or number of heads)"
    )
    return Cause(0, cause_finding(solution, "shape-differs", text, uses[0], leaf))


def _kernel(flow: Flow, node: Node) -> tuple[int, ...]:
    return tuple(flow[node.operands[1]].shape[2:]) if node.op == "convolution" else ()


def _kernel_text(flow: Flow, node: Node) -> str:
    return f" and a {'x'.join(map(str, _kernel(flow, node)))} kernel" if node.op == "convolution" else ""
