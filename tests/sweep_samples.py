"""Small tracked sweeps as files, by a writer that shares nothing with our reader."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from io_samples import rotation

SHAPE = (24, 18)  # pixels along the probe's face, and away from it
IMAGE_TO_PROBE = np.array([[0.02, 0.8, 0.1, 5.0], [-0.8, 0.03, 0.0, 12.0], [0.05, 0.1, 0.8, -7.0], [0, 0, 0, 1]])


def pose(angles: tuple[float, float, float], shift: Sequence[float]) -> np.ndarray:
    """A rigid map."""
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = rotation(angles), shift
    return made


def poses(count: int = 9) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """ProbeToTracker and ReferenceToTracker of a probe that moves 1.2 mm along x from frame to frame while the reference moves a little."""
    probes = [pose((0.3, -0.2, 0.1 + 0.01 * n), (150 + 0.1 * n, -90, 1.2 * n)) for n in range(count)]
    references = [pose((0.1, 0.5, -0.3), (200, 80 + 0.05 * n, 3)) for n in range(count)]
    return probes, references


def places(count: int = 9) -> np.ndarray:
    """[F, I, J, 3] where the pixels of `poses` lie in the frame Reference, which is LPS, mm: each pixel by the chain of its definition."""
    u, v = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    pixels = np.stack([u, v, 0 * u, 0 * u + 1]).reshape(4, -1)
    return np.stack([(np.linalg.inv(r) @ p @ IMAGE_TO_PROBE @ pixels)[:3].T.reshape(*SHAPE, 3) for p, r in zip(*poses(count), strict=True)])


def fields(count: int = 9, scale: float = 1.0) -> list[dict[str, str]]:
    """What each frame says; `scale` is of the positions."""
    said = []
    for probe, reference in zip(*poses(count), strict=True):
        frame = {}
        for name, given in (("ProbeToTracker", probe), ("ReferenceToTracker", reference)):
            m = given.copy()
            m[:3, 3] *= scale
            frame |= {f"{name}Transform": text(m), f"{name}TransformStatus": "OK"}
        said.append(frame | {"Timestamp": "1.0", "ImageStatus": "OK"})
    return said


def text(matrix: np.ndarray) -> str:
    """16 numbers in a line."""
    return " ".join(f"{v:.9g}" for v in matrix.ravel())


def write(path: Path, frames: np.ndarray, said: Sequence[Mapping[str, str]], orientation: str = "MFA", packed: bool = True) -> Path:
    """[F, I, J] bytes as a MetaImage sequence."""
    data = np.ascontiguousarray(frames.transpose(0, 2, 1), np.uint8).tobytes()
    data = zlib.compress(data) if packed else data
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", f"CompressedData = {packed}",
             f"DimSize = {frames.shape[1]} {frames.shape[2]} {frames.shape[0]}", "ElementSpacing = 1 1 1", "ElementType = MET_UCHAR",
             f"UltrasoundImageOrientation = {orientation}"]
    lines += [f"Seq_Frame{n:04d}_{name} = {value}" for n, frame in enumerate(said) for name, value in frame.items()]
    path.write_bytes("\n".join([*lines, "ElementDataFile = LOCAL\n"]).encode() + data)
    return path


def calibration(path: Path, extra: str = "") -> Path:
    """A configuration of PLUS."""
    path.write_text(f'<PlusConfiguration version="2.1"><CoordinateDefinitions><Transform From="Image" To="Probe" Matrix="{text(IMAGE_TO_PROBE)}" />'
                    f"</CoordinateDefinitions>{extra}</PlusConfiguration>")
    return path


def ramp(x: np.ndarray) -> np.ndarray:
    """Grey values that are linear in the place (LPS, mm) and lie within 1 and 254 on `places`."""
    whole = places()
    slope = np.array([0.5, -0.3, 0.8])
    low, high = (whole @ slope).min(), (whole @ slope).max()
    return 10 + 230 * ((x @ slope) - low) / (high - low)
