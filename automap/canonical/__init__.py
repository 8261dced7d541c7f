"""Canonical form: a capture becomes a flow graph, in which what is computed counts and not how it is spelled."""

from automap.canonical.flow import Flow as Flow
from automap.canonical.flow import Node as Node
from automap.canonical.flow import Ref as Ref
from automap.canonical.flow import Role as Role
from automap.canonical.lower import lower as lower
