"""What generated statements need beside them: helper functions, and long lists of rows as texts."""

from __future__ import annotations

from dataclasses import dataclass, field

from automap.export.spelling import wrapped

HELPERS = {
    "cast": '''
def cast(tensor, dtype, wanted):
    """`tensor` as `wanted` where it has the dtype that it is expected to have."""
    return tensor.to(wanted) if tensor.dtype == dtype else tensor
''',
    "cast_dtype": '''
def cast_dtype(found, dtype, wanted):
    """The dtype that `cast` gives for a tensor of dtype `found`."""
    return wanted if found == dtype else found
''',
    "promoted": '''
def promoted(*dtypes):
    """The dtype that torch promotes all of `dtypes` to."""
    return functools.reduce(torch.promote_types, dtypes)
''',
    "take": '''
def take(tensor, dim, rows):
    """The `rows` of `tensor` along `dim`, in their order; a text holds them as numbers."""
    rows = [int(row) for row in rows.split()] if isinstance(rows, str) else rows
    rows = torch.tensor(rows, dtype=torch.int64, device=tensor.device)
    return tensor.index_select(dim, rows)
''',
}


@dataclass(slots=True)
class Needs:
    """Helper functions by name, and the names of long lists of rows; filled while statements are written."""

    helpers: set[str] = field(default_factory=set)
    tables: dict[tuple[int, ...], str] = field(default_factory=dict)

    def table(self, indices: tuple[int, ...]) -> str:
        """The name under which the file holds a list of rows."""
        return self.tables.setdefault(indices, f"ROWS_{len(self.tables)}")

    def imports(self) -> list[str]:
        """The modules of the standard library that the helpers use."""
        return ["functools"] if "promoted" in self.helpers else []

    def parts(self) -> list[str]:
        """The pieces of the file that define what is needed."""
        rows = [f'{name} = """\n{wrapped(indices)}\n"""' for indices, name in self.tables.items()]
        return [*rows, *(text for name, text in HELPERS.items() if name in self.helpers)]
