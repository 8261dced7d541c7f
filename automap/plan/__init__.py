"""Plans: for each dest tensor the expression over src tensors that it is. Plain data, saved as JSON.

Element maps become expressions (build), expressions values (evaluate), text (notation) or JSON (codec); a Plan is one
expression for each dest tensor, Rules are the same folded for people.
"""

from automap.plan.build import ElementMap as ElementMap
from automap.plan.build import SourceTensor as SourceTensor
from automap.plan.build import build_expr as build_expr
from automap.plan.codec import from_json as from_json
from automap.plan.codec import to_json as to_json
from automap.plan.dtypes import dtype_of as dtype_of
from automap.plan.evaluate import evaluate as evaluate
from automap.plan.expr import Add as Add
from automap.plan.expr import Affine as Affine
from automap.plan.expr import Cast as Cast
from automap.plan.expr import Concat as Concat
from automap.plan.expr import Divide as Divide
from automap.plan.expr import Expand as Expand
from automap.plan.expr import Expr as Expr
from automap.plan.expr import Fill as Fill
from automap.plan.expr import Gather as Gather
from automap.plan.expr import MatMul as MatMul
from automap.plan.expr import MatrixFunction as MatrixFunction
from automap.plan.expr import Mean as Mean
from automap.plan.expr import Multiply as Multiply
from automap.plan.expr import Norm as Norm
from automap.plan.expr import Pad as Pad
from automap.plan.expr import Permute as Permute
from automap.plan.expr import Pointwise as Pointwise
from automap.plan.expr import Reshape as Reshape
from automap.plan.expr import Shape as Shape
from automap.plan.expr import Slice as Slice
from automap.plan.expr import Source as Source
from automap.plan.expr import Sqrt as Sqrt
from automap.plan.expr import Subtract as Subtract
from automap.plan.expr import Tril as Tril
from automap.plan.expr import is_computed as is_computed
from automap.plan.expr import sources_of as sources_of
from automap.plan.fold import Index as Index
from automap.plan.fold import Rule as Rule
from automap.plan.fold import Rules as Rules
from automap.plan.fold import expand as expand
from automap.plan.fold import fold as fold
from automap.plan.notation import format_expr as format_expr
from automap.plan.plan import Plan as Plan
from automap.plan.shapes import shape_of as shape_of
from automap.plan.simplify import simplify as simplify
