"""automap: bring weights from one PyTorch implementation of an architecture to another, and prove it.

Importing the package is cheap; torch is imported when a call needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from automap.errors import AutomapError as AutomapError
from automap.errors import MismatchError as MismatchError
from automap.findings import Finding as Finding
from automap.findings import Site as Site
from automap.inputs import Inputs as Inputs

if TYPE_CHECKING:
    from automap.api import explain as explain
    from automap.api import match as match
    from automap.api import transfer as transfer
    from automap.plan import Plan as Plan
    from automap.results import Explanation as Explanation
    from automap.results import Match as Match
    from automap.results import Transfer as Transfer

__version__ = "0.1.0"

_LAZY = {
    "explain": "automap.api",
    "match": "automap.api",
    "transfer": "automap.api",
    "Plan": "automap.plan",
    "Explanation": "automap.results",
    "Match": "automap.results",
    "Transfer": "automap.results",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'automap' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
