"""One typed record per task: what was measured, in which units, and what is asked for."""

from .projections import Projections
from .stacks import Stack, Stacks

__all__ = ["Projections", "Stack", "Stacks"]
