"""Surfaces (.stl, .ply, .obj, .off) through trimesh, which comes with the extra "mesh". Their vertices are taken as RAS+ mm, as they stand."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FileError, InputError, MissingExtra, OutputError
from .atomic import atomic
from .source import existing_file, unreadable

if TYPE_CHECKING:
    import trimesh

MESHES = (".stl", ".ply", ".obj", ".off")


def read_mesh(path: Path) -> trimesh.Trimesh:
    """One surface; its vertices are not merged or sorted.

    Raises:
        FileError: missing, damaged, or without a triangle.
        InputError: vertices that are not finite.
        MissingExtra: without trimesh.
    """
    engine = _trimesh()
    path = existing_file(path)
    try:
        mesh = engine.load(path, force="mesh", process=False, skip_materials=True)
        vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    except Exception as error:  # its readers raise whatever their parsing meets
        raise unreadable(path, error) from error
    if not len(faces) or faces.min() < 0 or faces.max() >= len(vertices):
        raise FileError(f"{path} holds no surface", "give triangles; points go in a .csv with the header x,y,z")
    if not np.isfinite(vertices).all():
        raise InputError(f"{path} has vertices that are not finite", "repair it first")
    return mesh


def write_mesh(mesh: trimesh.Trimesh, path: Path) -> None:
    """Write in the format the name asks for.

    Raises:
        OutputError: an unknown ending, or a file that cannot be written.
    """
    if path.suffix.lower() not in MESHES:
        raise OutputError(f"no known surface ends in '{path.suffix}'", f"use one of {', '.join(MESHES)}")
    with atomic(path) as temporary:
        mesh.export(temporary, file_type=path.suffix.lower()[1:])


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError as error:
        raise MissingExtra("trimesh", "mesh", "reading surfaces") from error
    return trimesh
