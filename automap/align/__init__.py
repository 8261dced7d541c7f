"""Alignment: which src weight elements each dest weight element is, found from what meets them and what follows."""

from automap.align.by_ops import on_twins as on_twins
from automap.align.by_ops import solve_by_ops as solve_by_ops
from automap.align.solve import Flows as Flows
from automap.align.solve import Solution as Solution
from automap.align.solve import solve as solve
from automap.align.solve import solve_on_twins as solve_on_twins
