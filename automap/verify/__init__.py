"""Proves or refutes a plan: both computations compared on fresh weights in float64, then the models with their own."""

from automap.verify.models import Models as Models
from automap.verify.models import coarsest_rounding as coarsest_rounding
from automap.verify.models import drawn_check as drawn_check
from automap.verify.models import measured_tolerance as measured_tolerance
from automap.verify.models import own_check as own_check
from automap.verify.models import refuse_nan as refuse_nan
from automap.verify.models import run_model as run_model
from automap.verify.ops import op_parities as op_parities
from automap.verify.proof import Verify as Verify
from automap.verify.proof import prove as prove
from automap.verify.recorded import Case as Case
from automap.verify.recorded import Pairs as Pairs
from automap.verify.recorded import RandomTest as RandomTest
from automap.verify.recorded import output_parity as output_parity
from automap.verify.recorded import planned_weights as planned_weights
from automap.verify.recorded import random_test as random_test
from automap.verify.recorded import run_test as run_test
