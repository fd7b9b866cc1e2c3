"""Fields: specs of networks and of linear bases, and `Field`, which gives one a place and units."""

from .agreed import Agreed
from .bspline import BSpline, LinearBasis
from .conditional import Conditional
from .dropout import Dropout, drawing
from .encodings import Fourier, GridEncoding, Harmonics, Identity, NeRFEncoding
from .field import Field
from .gaussians import Gaussians
from .heads import Cells, MultiHead
from .hybrid import Hybrid
from .lazy import LazyVolume
from .mlp import MLP, Network
from .positive import Positive
from .siren import Finer, Siren
from .spec import SPECS, Spec, from_json, parameter_count, spec, to_json, width_for
from .tube import Tube
from .warp import Affine, Composed, Flow, InPlane, composed, displacement, from_lattice, inverse_at, jacobian, on_lattice

__all__ = [
    "MLP", "SPECS", "Affine", "Agreed", "BSpline", "Cells", "Composed", "Conditional", "Dropout", "Field", "Finer", "Flow", "Fourier", "Gaussians",
    "GridEncoding", "Harmonics", "Hybrid", "Identity", "InPlane", "LazyVolume", "LinearBasis", "MultiHead", "NeRFEncoding", "Network", "Positive",
    "Siren", "Spec", "Tube", "composed", "displacement", "drawing", "from_json", "from_lattice", "inverse_at", "jacobian", "on_lattice",
    "parameter_count", "spec", "to_json", "width_for",
]
