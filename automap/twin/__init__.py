"""Narrow twins: both flow graphs with wide dims divided, those of one size alike, and the way back to the full sizes.

Which weight is which does not depend on how wide a layer is. A pair is aligned on its narrow twins, where computing
costs little and weights need no values; the plan found there is then written for the sizes of the models themselves.
"""

from automap.twin.enlarge import NotEnlarged as NotEnlarged
from automap.twin.enlarge import enlarged as enlarged
from automap.twin.enlarge import enlarged_plan as enlarged_plan
from automap.twin.pair import Twins as Twins
from automap.twin.pair import narrow_twins as narrow_twins
