"""One typed record per task: what was measured, in which units, and what is asked for."""

from .pair import Pair
from .projections import Projections
from .slices import Slice, Slices
from .stacks import Stack, Stacks
from .sweep import Sweep

__all__ = ["Pair", "Projections", "Slice", "Slices", "Stack", "Stacks", "Sweep"]
