"""One typed record per task: what was measured, in which units, and what is asked for."""

from .stacks import Stack, Stacks

__all__ = ["Stack", "Stacks"]
