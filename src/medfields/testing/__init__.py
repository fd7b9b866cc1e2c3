"""Contract tests as functions, for our own tests and for the authors of plug-ins: `check_method(MyMethod)`."""

from .fields import check_field
from .methods import METHOD_CHECKS, check_method
from .operators import check_adjoint, check_matrix, check_operator

__all__ = ["METHOD_CHECKS", "check_adjoint", "check_field", "check_matrix", "check_method", "check_operator"]
