"""How an answer is found: problems, the one loop with its stages, and the frame of every method."""

from .events import Curve, Curves, Event, JsonLines, Listener, Terminal
from .method import Method
from .problem import Inverse, Measured, Problem
from .run import Run

__all__ = ["Curve", "Curves", "Event", "Inverse", "JsonLines", "Listener", "Measured", "Method", "Problem", "Run", "Terminal"]
