"""Capture: a model and its inputs become one torch.fx.Graph of ATen calls with named weights as leaves."""

from automap.capture.choose import capture as capture
from automap.capture.dispatch import record as record
from automap.capture.result import Capture as Capture
from automap.capture.result import Weight as Weight
from automap.capture.result import weights_of as weights_of
