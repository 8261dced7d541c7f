"""Capture: a model and its inputs become one torch.fx.Graph of ATen calls with named weights as leaves."""

from automap.capture.capture import Capture as Capture
from automap.capture.capture import Weight as Weight
from automap.capture.capture import weights_of as weights_of
from automap.capture.dispatch import record as record
