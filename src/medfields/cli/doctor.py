"""doctor: what this machine offers to medfields, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from .. import __version__, plugins

EXTRAS = {
    "SimpleITK": ("io", "NRRD and MetaImage files, n4, segment-mask"),
    "pylibjpeg": ("dicom", "compressed DICOM"),
    "skimage": ("bench", "SSIM in the bench"),
}


def doctor() -> None:
    """Versions, threads, kernels, precision, optional packages, disk: what to look at first when something is slow or missing."""
    for name, value in facts():
        print(f"{name:<18}{value}")


def facts() -> Iterator[tuple[str, str]]:
    """Names and findings, in the order they are printed."""
    import numba
    import torch

    yield "medfields", f"{__version__}, {len(plugins.entries())} methods"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    yield "OMP_WAIT_POLICY", policy if policy.upper() == "PASSIVE" else f"{policy or 'not set'}: PASSIVE is many times faster on busy cores"
    yield "accelerator", torch.cuda.get_device_name() if torch.cuda.is_available() else "none: the CPU kernels are used"
    yield "kernels, CPU", f"Numba {numba.__version__}, {numba.get_num_threads()} threads: {_numba()}"
    yield "kernels, CUDA", _triton(torch.cuda.is_available())
    yield "precision", _precision()
    for package, (extra, purpose) in EXTRAS.items():
        found = importlib.util.find_spec(package) is not None
        yield package, "installed" if found else f"missing: {purpose} (pip install 'medfields[{extra}]')"
    yield "disk", f"{shutil.disk_usage(Path()).free / 2**30:.1f} GiB free here"


def _numba() -> str:
    """Whether a small Numba function compiles and runs."""
    import numba

    return "compiles and runs" if numba.njit(lambda x: 2 * x)(21) == 42 else "gives wrong answers"


def _triton(cuda: bool) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: the torch twins are used on a GPU"
    return "Triton is installed" + ("" if cuda else ", no GPU to use it on")


def _precision() -> str:
    from ..kernels.mlp import policy

    chosen = "set by MEDFIELDS_MLP" if os.environ.get("MEDFIELDS_MLP") else "measured just now"
    return f"{policy()} for training networks on the CPU ({chosen}), float32 for reading finished fields"
