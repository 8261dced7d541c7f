"""Figures on a logarithmic axis: order is kept, and nothing that differs is hidden."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import op

from automap.report.chart import check_chart, op_chart, share_of
from automap.results import OutputParity, ParityCheck


@pytest.mark.parametrize(
    ("figure", "share"),
    [(0.0, 0.0), (1e-30, 0.0), (1e-18, 0.0), (1e-8, 0.5), (100.0, 1.0), (1e9, 1.0), (math.inf, 1.0), (math.nan, 1.0)],
)
def test_the_axis_goes_from_1e_minus_18_to_100(figure: float, share: float) -> None:
    assert share_of(figure) == share


@given(st.floats(min_value=0), st.floats(min_value=0))
def test_a_larger_figure_is_never_drawn_smaller(a: float, b: float) -> None:
    assert share_of(min(a, b)) <= share_of(max(a, b))


def test_outputs_beyond_eight_are_left_for_a_click_the_farthest_are_not() -> None:
    figures = [1e-16, 1e-3, 1e-15, math.nan, *([1e-17] * 10)]
    outputs = tuple(OutputParity(str(n), str(n), (2,), "float64", x, x, 1e-9) for n, x in enumerate(figures))
    chart = check_chart(ParityCheck("own", "sample", outputs))
    assert [bar.output.src_path for bar in chart.bars[:4]] == ["3", "1", "2", "0"]
    assert (len(chart.bars), len(chart.rest)) == (8, 6)
    assert check_chart(ParityCheck("own", "sample", outputs[:8])).bars[0].output is outputs[0]


def test_without_ops_there_is_no_chart() -> None:
    assert op_chart(()) is None


@given(st.integers(1, 1000), st.dictionaries(st.integers(0, 999), st.sampled_from([0.0, 1e-2, math.nan]), max_size=9))
def test_no_op_that_differs_is_hidden_behind_one_that_does_not(count: int, figures: dict[int, float]) -> None:
    ops = [op(n, figures.get(n, 1e-16)) for n in range(count)]
    chart = op_chart(ops)
    assert chart is not None
    assert len(chart.columns) <= 240
    assert (chart.count, sum(column.count for column in chart.columns)) == (len(ops), len(ops))
    bad = [number for number, one in enumerate(ops) if not one.is_equal]
    assert chart.different == len(bad)
    assert chart.first is (ops[bad[0]] if bad else None)
    size = math.ceil(len(ops) / 240)
    red = [at for at, column in enumerate(chart.columns) if not column.worst.is_equal]
    assert red == sorted({number // size for number in bad})


def test_the_limit_is_drawn_where_all_ops_have_one() -> None:
    for ops, limit in (
        ([op(0), op(1)], share_of(1e-9)),
        ([op(0), op(1, tolerance=1e-3)], None),
        ([op(0, tolerance=math.inf)], None),
    ):
        chart = op_chart(ops)
        assert chart is not None
        assert chart.limit == limit
