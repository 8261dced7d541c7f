"""Layout: whatever is written, ruff format leaves as it is."""

from __future__ import annotations

from random import Random

from exported import reformatted

from automap.export.text import Chain, Code, Each, Group, Lookup, assignment, flat, laid_out, module


def lookup(random: Random) -> Lookup:
    return Lookup(random.choice(["src", "dest"]), f'"{"a" * random.randint(1, 70)}"')


def code(random: Random, depth: int = 3) -> Code:
    """Any code that is written: names, lookups, calls and lists of these, comprehensions over lookups."""
    kind = random.randint(0, 5) if depth else random.randint(0, 1)
    if kind < 2:
        return lookup(random) if kind else "a" * random.randint(1, 30)
    if kind == 5:
        return Each(lookup(random), "for e in range(4)")
    items = tuple(code(random, depth - 1) for _ in range(random.randint(1, 3)))
    return Group("f(", (*items, "dim=1"), ")") if kind < 4 else Group("[", items, "]")


def test_statements_are_as_ruff_formats_them() -> None:
    random, lines, written = Random(0), [], 0
    for number in range(600):
        indent = 4 * (number % 3)
        lines += [f"{' ' * depth}if a:" for depth in range(0, indent, 4)]
        target, value = lookup(random), code(random)
        for statement in (assignment("w", value, indent), assignment(target, value, indent)):
            written += statement is not None
            lines += statement or [" " * indent + "pass"]
        lines += assignment(target, "w", indent) or []
    text = "\n".join(lines) + "\n"
    assert reformatted(text) == [text]
    assert written > 600


def test_short_code_stays_on_one_line() -> None:
    joined = Group("torch.cat(", (Group("[", ("a", "b"), "]"), "dim=1"), ")")
    assert assignment("w", joined, 4) == ["    w = torch.cat([a, b], dim=1)"]


def test_long_code_has_one_item_a_line() -> None:
    call = Group("f(", ("a" * 50, Chain(Lookup("src", '"x"'), ".T"), "b" * 50), ")")
    assert laid_out(call, before="return ") == [
        "return f(",
        f"    {'a' * 50},",
        '    src["x"].T,',
        f"    {'b' * 50},",
        ")",
    ]


def test_what_has_no_stable_form_is_left_to_the_caller() -> None:
    assert assignment("w", Chain(Lookup("src", f'"{"x" * 90}"'), ".chunk(3)"), 0) is None
    assert assignment(Lookup("dest", '"y"'), Group("f(", ("a" * 90,), ")"), 0) is None


def test_pieces_of_a_file_stand_two_lines_apart() -> None:
    assert module(["a = 1\n", "", "def f():\n    pass\n"]) == "a = 1\n\n\ndef f():\n    pass\n"


def test_flat_code_has_no_line_breaks() -> None:
    random = Random(1)
    assert not any("\n" in flat(code(random)) for _ in range(100))
