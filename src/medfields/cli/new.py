"""new: writes a method file that already runs, to be changed line by line into one's own."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from .. import plugins
from ..errors import InputError, OutputError, UnknownName

TEMPLATE = '''"""{title}: {line}

Write here what the idea is: the equation, and what is new about it.

Needs: stacks with their slice thickness (mm).
Gives: intensity at any point, one channel for each contrast.
Deviations: what differs from the paper, and why.
Fidelity: ours; then "published" or "interpreted".
Licence: whether a licence or a patent restricts its use.
Use when: when it beats the classical method, and when it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from medfields.cases import Stacks
from medfields.fields import Field, {spec}
from medfields.solve import Inverse, Method, Run


@dataclass(frozen=True)
class {class_name}(Method):
    """AUTHORS, JOURNAL YEAR, section.

    Args:
        net: the network.
        steps, lr: of Adam.
        samples: stack voxels in a step.
        nodes: quadrature points under each slice profile.
    """

    paper: ClassVar[str] = "AUTHORS: TITLE. JOURNAL YEAR. doi:10.xxxx/xxxxx"
    task: ClassVar[str] = "superres"
    fidelity: ClassVar[str] = "ours"
    tiny: ClassVar[dict[str, Any]] = {{"net": {spec}(width=16, depth=2), "steps": 20, "samples": 256, "nodes": 4}}  # runs in a second

    net: {spec} = {spec}(width=256, depth=4)
    steps: int = 2000
    lr: float = {lr}
    samples: int = 4096
    nodes: int = 6

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        offset, scale = case.intensities()
        field = Field(self.net, case.box(), len(case.contrasts), scale=scale, offset=offset, names=case.contrasts)
        problem = Inverse(field, case.operator(self.nodes), case.samples(), self.samples)
        return run.fit(problem, steps=self.steps, lr=self.lr, name="fit").field
'''
CT = '''"""{title}: {line}

Write here what the idea is: the equation, and what is new about it.

Needs: projections (line integrals, without unit) and their geometry.
Gives: attenuation in 1/mm at any point.
Deviations: what differs from the paper, and why.
Fidelity: ours; then "published" or "interpreted".
Licence: whether a licence or a patent restricts its use.
Use when: when it beats the classical method, and when it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from medfields.cases import Projections
from medfields.fields import Field, Positive, {spec}
from medfields.solve import Method, Run
from medfields.solve.projections import ProjectionFit


@dataclass(frozen=True)
class {class_name}(Method):
    """AUTHORS, JOURNAL YEAR, section.

    Args:
        net: the network; its output is kept positive.
        steps, lr: of Adam.
        rays: in a step.
        tv: weight of the total variation.
    """

    paper: ClassVar[str] = "AUTHORS: TITLE. JOURNAL YEAR. doi:10.xxxx/xxxxx"
    task: ClassVar[str] = "ct"
    fidelity: ClassVar[str] = "ours"
    tiny: ClassVar[dict[str, Any]] = {{"net": {spec}(width=16, depth=2), "steps": 20, "rays": 64}}  # runs in a second

    net: {spec} = {spec}(width=256, depth=4)
    steps: int = 2000
    lr: float = {lr}
    rays: int = 1024
    tv: float = 0.01

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field:
        problem = ProjectionFit(Positive(self.net), case, rays=self.rays, tv=self.tv)
        return run.fit(problem, steps=self.steps, lr=self.lr, name="fit").field
'''
TASKS = {  # template, and how to run a method
    "superres": (TEMPLATE, "medfields superres a.nii.gz b.nii.gz -o iso.nii.gz"),
    "ct": (CT, "medfields ct projections.h5 -o volume.nii.gz"),
}
LIKE = {"siren": ("Siren", "1e-4"), "mlp": ("MLP", "1e-3")}


def new(name: Positional[str], task: str = "", like: str = "", folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path()) -> None:
    """Write a method file to start from, and say how to run and test it.

    Args:
        name: of the method, in lower case with "-" between words.
        task: superres or ct; default: that of --like, else superres.
        like: an installed method whose file is copied instead of the short template, or siren or mlp for the template with that network.
        folder: where the file goes.
    """
    stem = name.replace("-", "_").lower()
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise InputError(f"'{name}' cannot be the name of a method", "use letters, digits and '-', beginning with a letter")
    if task and task not in TASKS:
        raise UnknownName("task", task, TASKS)
    path = folder / f"{stem}.py"
    class_name = "".join(part.capitalize() for part in stem.split("_"))
    if like and like not in LIKE:
        entry = plugins.find(like)
        if task and entry.task != task:
            raise InputError(f"the method '{like}' is for {entry.task}, not for {task}", f"medfields list --task {task}")
        task = entry.task
        text = entry.path.read_text(encoding="utf-8").replace("from ..", "from medfields.").replace(entry.class_name, class_name)
    else:
        spec, lr = LIKE[like or "siren"]
        task = task or "superres"
        text = TASKS[task][0].format(title=class_name, line="one line that says what is new.", class_name=class_name, spec=spec, lr=lr)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputError(f"{path} already exists", "choose another name, or remove the file") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "choose another --folder") from error
    shown = path if path.is_absolute() else f"./{path}"
    print(f"{path}\ntest it:  medfields check {shown}\nrun it:   {TASKS[task][1]} --method {shown}")
