"""One typed record per task: what was measured, in which units, and what is asked for."""

from .pair import Pair
from .projections import Projections
from .stacks import Stack, Stacks

__all__ = ["Pair", "Projections", "Stack", "Stacks"]
