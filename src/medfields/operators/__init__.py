"""What a scanner measures of a function of the world."""

from .slices import SliceAverage, SliceOperator, slice_quadrature

__all__ = ["SliceAverage", "SliceOperator", "slice_quadrature"]
