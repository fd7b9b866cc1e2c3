"""report: writes the report of a run folder again, from the files that the run read and wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from ..errors import FileError, InputError
from . import task

if TYPE_CHECKING:
    from ..report.run_folder import RunFolder
    from ..space import Volume


def report(folder: Positional[Path], truth: str = "") -> None:
    """Write report.html into a run folder again.

    Args:
        folder: of a finished run; it lies beside the result and ends in .run.
        truth: an image of the true volume, where there is one, of ct in HU or 1/mm: adds error maps and scores.
    """
    from ..report.run_folder import RunFolder

    facts = RunFolder.read(folder)
    if not facts.summary.get("outputs"):
        raise FileError(f"the run in {folder} is not finished", "run the same medfields command again: it goes on where it was")
    print(PAGES[facts.settings.get("task", "superres")](folder, facts, truth))


def _register(folder: Path, facts: RunFolder, truth: str) -> Path:
    from .register import again

    if truth:
        raise InputError("of a deformation nobody knows the truth", "give --landmarks or --labels to medfields register")
    return again(folder, facts)


def _motion(folder: Path, facts: RunFolder, truth: str) -> Path:
    from .motion import again

    if truth:
        raise InputError("slices do not tell where the subject lies as a whole, so a truth cannot be laid beside the result", "register it first")
    return again(folder, facts)


def _ultrasound(folder: Path, facts: RunFolder, truth: str) -> Path:
    from .ultrasound import again

    if truth:
        raise InputError("a sweep is judged by its frames, not by another volume", "leave --truth out")
    return again(folder, facts)


def _superres(folder: Path, facts: RunFolder, truth: str) -> Path:
    import torch

    from ..cases import Stacks
    from ..io import read_volume
    from ..report import superres_page
    from ..space import Volume

    settings = facts.settings
    contrasts = [c.partition("=")[0] for c in settings.get("contrast", ())]
    case = Stacks.read(
        facts.summary["stacks"],
        spacing=settings.get("spacing"),
        like=settings.get("like") or None,
        profile=settings["profile"],
        thickness=settings["thickness"],
        contrasts=contrasts,
    )
    volumes = [read_volume(path) for path in facts.summary["outputs"]]
    result = Volume(torch.cat([v.data for v in volumes]), volumes[0].grid, volumes[0].unit)
    sharp = read_volume(truth, channels=True).on(result.grid) if truth else None
    if sharp is not None and sharp.channels != result.channels:
        message = f"the truth has {sharp.channels} channels, the result {result.channels}"
        raise InputError(message, "give one image with a channel for each contrast")
    scores = {facts.method: _scores(result, sharp)} if sharp is not None else None
    return superres_page(case, result, folder, truth=sharp, metrics=scores)


def _ct(folder: Path, facts: RunFolder, truth: str) -> Path:
    from ..cases.attenuation import WATER, looks_like, per_mm
    from ..io import read_volume
    from .ct import case_of, parse, split, write_page
    from .work import read_any_field

    options, _ = parse(["--config", str(folder / "config.toml")])
    case, held_out, notes = case_of(dataclasses.replace(options, prior=""))  # the page does not show it
    result = task.as_volume(read_any_field(facts.summary["field"]), case.grid)
    value, std = split(result, tuple(facts.summary.get("channels", ())))
    sharp = None
    if truth:
        image = read_volume(truth)
        sharp = per_mm(image, looks_like(image), case.water or WATER).on(case.grid)
        if float(sharp.data.max()) <= 0:
            raise InputError(f"the truth {truth} does not overlap the result", "it must lie in the same mm")
    scores = {facts.method: _ct_scores(value, sharp)} if sharp is not None else None
    return write_page(case, held_out, value, std, folder, notes, sharp, scores)


def _scores(result: Volume, truth: Volume) -> dict[str, float]:
    """Mean over the channels of each score inside the head."""
    from ..evaluate.metrics import head_mask, scores

    pairs = list(zip(result.data.numpy(), truth.data.numpy(), strict=True))
    rows = [scores(r, t, head_mask(t)) for r, t in pairs]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _ct_scores(result: Volume, truth: Volume) -> dict[str, float]:
    """PSNR and NRMSE inside the cylinder that the grid holds, which is what every view sees."""
    import numpy as np

    from ..evaluate.metrics import nrmse, psnr

    i, j = (np.abs((np.arange(n) - (n - 1) / 2) / (n / 2)) for n in result.grid.shape[:2])
    mask = np.broadcast_to((i[:, None] ** 2 + j[None] ** 2 <= 1)[:, :, None], result.grid.shape)
    x, t = result.data[0].numpy(), truth.data[0].numpy()
    return {"psnr": psnr(x, t, mask), "nrmse": nrmse(x, t, mask)}


PAGES = {"superres": _superres, "motion": _motion, "ct": _ct, "register": _register, "ultrasound": _ultrasound}
