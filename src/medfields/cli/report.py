"""report: writes the report of a run folder again, from the files that the run read and wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from ..errors import FileError, InputError

if TYPE_CHECKING:
    from ..space import Volume


def report(folder: Positional[Path], truth: str = "") -> None:
    """Write report.html into a run folder again.

    Args:
        folder: of a finished run; it lies beside the result and ends in .run.
        truth: an image of the sharp volume, where there is one: adds error maps and the scores inside the head.
    """
    import torch

    from ..cases import Stacks
    from ..io import read_volume
    from ..report import superres_page
    from ..report.run_folder import RunFolder
    from ..space import Volume

    facts = RunFolder.read(folder)
    if not facts.summary.get("outputs"):
        raise FileError(f"the run in {folder} is not finished", "run the same medfields command again: it goes on where it was")
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
    print(superres_page(case, result, folder, truth=sharp, metrics=scores))


def _scores(result: Volume, truth: Volume) -> dict[str, float]:
    """Mean over the channels of each score inside the head."""
    from ..evaluate.metrics import head_mask, scores

    pairs = list(zip(result.data.numpy(), truth.data.numpy(), strict=True))
    rows = [scores(r, t, head_mask(t)) for r, t in pairs]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
