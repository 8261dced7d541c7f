"""A capture is printed as a table, JSON or GraphML."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch
from torch import fx

from automap.capture import Capture, Weight
from automap.report.trace import Form, trace_entries, trace_text


def captured() -> Capture:
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight, table = graph.get_attr("w0"), graph.get_attr("c0")
    moved = graph.call_function(torch.ops.aten.permute.default, (weight, [1, 0]))
    result = graph.call_function(torch.ops.aten.addmm.default, (table, x, moved), {"beta": 2})
    graph.output(result)
    for node, shape in ((x, (1, 3)), (weight, (4, 3)), (table, (4,)), (moved, (3, 4)), (result, (1, 4))):
        node.meta |= {"shape": shape, "dtype": torch.float32, "module_path": "head"}
    result.meta |= {"file": "/a/site-packages/lib/model.py", "line": 7}
    tensor = torch.randn(4, 3)
    held = Weight(("head.weight", "tied.weight"), tensor, True, ("head.weight",))
    return Capture(
        graph=graph,
        weights={weight.name: held},
        constants={table.name: torch.zeros(4)},
        inputs={"x": torch.zeros(1, 3)},
        outputs=(("", result),),
        all_weights=(held,),
        model_name="Tiny",
    )


def test_entries_say_what_each_node_is() -> None:
    kinds = [(entry.kind, entry.text) for entry in trace_entries(captured())]
    assert kinds[:5] == [
        ("input", "x"),
        ("weight", "head.weight = tied.weight"),
        ("constant", "c0"),
        ("call", "permute.default(w0, [1, 0])"),
        ("call", "addmm.default(c0, x, permute_default, beta=2)"),
    ]


def test_the_table_has_a_line_for_each_node_and_a_summary() -> None:
    lines = trace_text(captured()).splitlines()
    assert len(lines) == 6
    assert lines[4].split("  ")[-1] == "lib/model.py:7"
    assert lines[4].startswith("addmm_default")
    assert lines[5] == "2 calls, dispatch over real tensors"


def test_json_names_its_schema_and_edges() -> None:
    data = json.loads(trace_text(captured(), form="json"))
    assert (data["schema"], data["model"]) == ("automap-trace/1", "Tiny")
    assert data["nodes"][4]["args"] == ["c0", "x", "permute_default"]
    assert data["nodes"][4]["shape"] == [1, 4]


def test_graphml_keeps_the_order_of_arguments() -> None:
    root = ElementTree.fromstring(trace_text(captured(), form="graphml"))
    space = "{http://graphml.graphdrawing.org/xmlns}"
    edges = [
        (edge.get("source"), edge[0].text)
        for edge in root.iter(f"{space}edge")
        if edge.get("target") == "addmm_default"
    ]
    assert sorted(edges) == [("c0", "0"), ("permute_default", "2"), ("x", "1")]


@pytest.mark.parametrize("form", ["table", "json", "graphml"])
def test_every_form_ends_with_a_newline(form: Form) -> None:
    assert trace_text(captured(), form=form).endswith("\n")
