"""A Plan: for each dest tensor, the expression over src's tensors that it is. Data that outlives the run.

Saved as JSON with a version; reading is strict. A plan that exists is valid: every expression fits together, and no
src tensor has two shapes.
"""

from __future__ import annotations

import html
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from automap.errors import PlanError
from automap.plan.codec import Fields, from_json, read_size, read_text, to_json
from automap.plan.evaluate import evaluate
from automap.plan.expr import Affine, Cast, Expand, Expr, Permute, Reshape, Shape, Slice, Source, sources_of
from automap.plan.shapes import shape_of

if TYPE_CHECKING:
    from torch import Tensor

    from automap.plan.fold import Rules

FORMAT = "automap-plan"
VERSION = 1
MAX_FILE_BYTES = 2**28
_SHOWN = 20


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """`entries` maps each dest name to the expression it is; `src` and `dest` name the two models.

    Raises:
        PlanError: an expression does not fit together, or a src tensor occurs with two shapes.

    Example:
        >>> plan = Plan({"fc.weight": Permute(Source("dense.kernel", (768, 3072)), (1, 0))})
        >>> plan.dest_shapes
        {'fc.weight': (3072, 768)}
    """

    entries: Mapping[str, Expr]
    src: str = ""
    dest: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", dict(self.entries))
        if self.version != VERSION:
            raise PlanError(f"the plan has version {self.version}, this automap reads version {VERSION}")
        first_uses: dict[str, Source] = {}
        for name, expr in self.entries.items():
            try:
                shape_of(expr)
            except PlanError as error:
                raise PlanError(f"`{name}`: {error}") from error
            for source in sources_of(expr):
                first = first_uses.setdefault(source.name, source)
                if first != source:
                    raise PlanError(
                        f"`{name}`: `{source.name}` is {source.dtype}{list(source.shape)} here and "
                        f"{first.dtype}{list(first.shape)} elsewhere"
                    )

    @property
    def sources(self) -> tuple[Source, ...]:
        """The src tensors that are read, each once, in the order of first use."""
        return tuple(dict.fromkeys(source for expr in self.entries.values() for source in sources_of(expr)))

    @property
    def src_shapes(self) -> dict[str, Shape]:
        """The shape of every src tensor that is read."""
        return {source.name: source.shape for source in self.sources}

    @property
    def dest_shapes(self) -> dict[str, Shape]:
        """The shape of every dest tensor."""
        return {name: shape_of(expr) for name, expr in self.entries.items()}

    def apply(self, src_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The dest state: contiguous tensors that share no memory with `src_state` or each other.

        Tensors keep the dtype that `src_state` has where that is not the one the plan was made with (see evaluate).

        Raises:
            PlanError: src tensors are missing or have other shapes.
        """
        import torch

        state: dict[str, Tensor] = {}
        for name, value in self.values(src_state):
            is_alias = _may_alias(self.entries[name])
            state[name] = (value.clone(memory_format=torch.contiguous_format) if is_alias else value).contiguous()
        return state

    def values(self, src_state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield what `apply` gives, one tensor after the other: each may be a view of one of `src_state`.

        Raises:
            PlanError: src tensors are missing or have other shapes.
        """
        import torch

        self._check_present(src_state)
        for name, expr in self.entries.items():
            try:
                with torch.no_grad():
                    value = evaluate(expr, src_state).detach()
            except PlanError as error:
                raise PlanError(f"`{name}`: {error}") from error
            yield name, value

    def _check_present(self, src_state: Mapping[str, Tensor]) -> None:
        missing = [source.name for source in self.sources if source.name not in src_state]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise PlanError(
                f"src has no tensor {', '.join(f'`{name}`' for name in missing[:5])}{more}",
                help="was the plan made for another model, or do the names have another prefix?",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, one line for each dest tensor; `path` holds all of it or what it held before.

        Raises:
            PlanError: an expression is nested too deep to be read again.
            OSError: the file cannot be written.
        """
        path = Path(path)
        text = self._text()
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _text(self) -> str:
        head = {"format": FORMAT, "version": self.version, "src": self.src, "dest": self.dest}
        fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        entries = [f"  {json.dumps(name)}: {json.dumps(to_json(expr))}" for name, expr in self.entries.items()]
        body = "{\n" + ",\n".join(entries) + "\n}" if entries else "{}"
        return "{\n" + ",\n".join(fields) + f',\n"entries": {body}\n}}\n'

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan that `save` wrote to `path`.

        Raises:
            PlanError: the file cannot be read, or is anything but a plan of this version; the message names the place.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise PlanError(f"cannot read plan {path}: {error.strerror or error}") from error
        if len(data) > MAX_FILE_BYTES:
            raise PlanError(f"plan {path} is larger than {MAX_FILE_BYTES} bytes")
        try:
            return cls.from_text(data.decode("utf-8"))
        except (PlanError, UnicodeDecodeError) as error:
            raise PlanError(f"plan {path}: {error}") from error

    @classmethod
    def from_text(cls, text: str) -> Plan:
        """The plan in a JSON text.

        Raises:
            PlanError: the text is anything but a plan of this version; the message names the place.
        """
        fields = Fields(_parsed(text), "plan")
        if fields.take("format", read_text) != FORMAT:
            raise PlanError(f"plan.format is not `{FORMAT}`")
        version = fields.take("version", read_size)
        if version != VERSION:
            raise PlanError(f"plan.version is {version}, this automap reads version {VERSION}")
        src, dest = fields.take("src", read_text), fields.take("dest", read_text)
        entries = fields.take("entries", _read_entries)
        fields.finish()
        return cls(entries, src=src, dest=dest, version=version)

    def invert(self) -> Plan:
        """The plan from dest to src: `plan.invert().apply(plan.apply(state))` is `state`, as far as it is read.

        Constants are dropped; Affine is undone up to rounding, everything else bitwise.

        Raises:
            PlanError: the map is not one-to-one: part of a src tensor is used twice or not at all, or bits are lost.
        """
        from automap.plan.inverse import inverted_entries

        return Plan(inverted_entries(self.entries), src=self.dest, dest=self.src)

    def rules(self, *, cuts: bool = False) -> Rules:
        """The plan folded for people: one rule for all layers that are made alike.

        Args:
            cuts: whether to fold what is cut out of one tensor at even distances too (see `Rule.starts`).
        """
        from automap.plan.fold import fold

        return fold(self, cuts=cuts)

    def for_model(
        self,
        dest_shapes: Mapping[str, Shape],
        src_shapes: Mapping[str, Shape] | None = None,
        *,
        dims: Mapping[int, int] | None = None,
    ) -> Plan:
        """The plan for a larger (or smaller) model of the same architecture, told from this one for a small twin.

        Names go on as the rules do: this plan needs two blocks, better three, to tell how they count. Sizes follow from
        the shapes: from how tensors are cut, joined and split into dims. What shapes do not tell (how many heads there
        are in a dim) is as in this plan where the sizes it is part of are, and has to be given otherwise.

        A good twin has different sizes for different things (3 heads of 10, not 4 of 4), and none of 1: what is one in
        the twin leaves no trace in its plan. The result is a claim like any other: verify it.

        Args:
            dest_shapes: the shape of every dest tensor that the plan shall make.
            src_shapes: the shape of every src tensor; without them, those are told from dest's.
            dims: what a factor of this size in the plan is there: `{4: 64}` for 64 heads instead of 4.

        Raises:
            PlanError: no rule reaches a dest tensor, shapes do not fit, or what a size is has more than one reading;
                the message names the tensor and the readings.

        Example:
            >>> twin = Plan({f"layers.{i}.fc": Permute(Source(f"h.{i}.w", (2, 6)), (1, 0)) for i in range(2)})
            >>> twin.for_model({"layers.79.fc": (48, 16)}).entries
            {'layers.79.fc': Permute(arg=Source(name='h.79.w', shape=(16, 48), dtype='float32'), dims=(1, 0))}
        """
        from automap.plan.larger import Sizes, larger_plan

        return larger_plan(self, Sizes(dest_shapes, src_shapes, dims or {}))

    def __repr__(self) -> str:
        models = f", {self.src!r} -> {self.dest!r}" if self.src or self.dest else ""
        return f"<Plan: {len(self.entries)} dest tensors from {len(self.sources)} of src{models}>"

    def _repr_html_(self) -> str:
        lines = str(self.rules(cuts=True)).splitlines()
        if len(lines) > _SHOWN:
            lines = [*lines[:_SHOWN], f"... {len(lines) - _SHOWN} more"]
        text = "\n".join(line if len(line) <= 300 else f"{line[:300]} ..." for line in lines)
        return f"<div><b>{html.escape(repr(self))}</b><pre>{html.escape(text)}</pre></div>"


def _may_alias(expr: Expr) -> bool:
    """Whether the value may share memory with a src tensor."""
    match expr:
        case Source():
            return True
        case Slice(arg) | Permute(arg) | Reshape(arg) | Expand(arg) | Cast(arg) | Affine(arg, 1, 0):
            return _may_alias(arg)
        case _:
            return False


def _read_entries(data: object, place: str) -> dict[str, Expr]:
    if not isinstance(data, dict):
        raise PlanError(f"{place} is not an object")
    return {name: from_json(value, place=f"{place}[{json.dumps(name)}]") for name, value in data.items()}


def _parsed(text: str) -> object:
    """The JSON value in `text`; duplicate names, NaN and nesting beyond all reason are refused."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = dict(pairs)
        if len(names) < len(pairs):
            twice = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
            raise PlanError(f"plan has the field {json.dumps(twice)} twice in one object")
        return names

    def refuse(constant: str) -> object:
        raise PlanError(f"plan has the number {constant}, which JSON has not")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise PlanError("plan is nested too deep") from None
    except ValueError as error:
        raise PlanError(f"plan is not JSON: {error}") from error
