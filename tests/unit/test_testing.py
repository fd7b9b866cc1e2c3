"""The contract tests themselves: each must fail on a method, field or operator that breaks its promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medfields import plugins
from medfields.cli.new import TEMPLATE
from medfields.fields import Field, Siren
from medfields.solve import Method
from medfields.space import Box
from medfields.testing import check_adjoint, check_field, check_operator, methods

GOOD = TEMPLATE.format(title="Mine", line="an idea.", class_name="Mine", spec="Siren", lr="1e-3")
START = "        offset, scale ="


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., type[Method]]:
    """The template's method, with parts of its text replaced."""

    def make(*changes: tuple[str, str]) -> type[Method]:
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mine.py"
        path.write_text(text)
        return plugins.load(str(path))

    return make


def test_the_template_keeps_every_promise(made) -> None:
    methods.check_method(made())


BROKEN = [
    (methods.check_card, "Use when", [("Use when:", "Perhaps:")]),
    (
        methods.check_card,
        "Deviations",
        [("Deviations:", "Changes:"), ('fidelity: ClassVar[str] = "ours"', 'fidelity: ClassVar[str] = "interpreted"')],
    ),
    (methods.check_card, "no DOI", [('fidelity: ClassVar[str] = "ours"', 'fidelity: ClassVar[str] = "classical"')]),
    (methods.check_file, "the limit is 120", [("from torch import nn", "from torch import nn\n" + "\n" * 100)]),
    (methods.check_file, "no other method", [("from torch import nn", "from torch import nn\nfrom medfields.methods.siren import SIREN")]),
    (methods.check_file, "no other method", [("from torch import nn", "from torch import nn\nimport medfields.classical.srr_cg")]),
    (
        methods.check_hyper_parameters,
        "'steps' has no default",
        [("    net: Siren = Siren(width=256, depth=4)\n", ""), ("self.net", "Siren(8, 1)"), ("steps: int = 2000", "steps: int")],
    ),
    (methods.check_hyper_parameters, "stepps", [('"steps": 20', '"stepps": 20')]),
    (methods.check_result, "changed its case", [(START, f"        case.stacks[0].volume.data.mul_(1.01)\n{START}")]),
    (
        methods.check_result,
        "not finite",
        [
            ("scale=scale", "scale=scale * float('inf')"),
            ('return run.fit(problem, steps=self.steps, lr=self.lr, name="fit").field', "return field"),
        ],
    ),
    (
        methods.check_result,
        "1 channels for 2",
        [
            ("len(case.contrasts)", "1"),
            ("offset=offset, names=case.contrasts", "offset=0.0"),
            ("scale=scale", "scale=1.0"),
            ('return run.fit(problem, steps=self.steps, lr=self.lr, name="fit").field', "return field"),
        ],
    ),
    (
        methods.check_result,
        "changed its prior",
        [
            ("    def solve", "    def learn(self, cohort, run):\n        return nn.Linear(2, 2)\n\n    def solve"),
            (START, f"        nn.init.zeros_(prior.weight)\n{START}"),
        ],
    ),
    (methods.check_same_seed_same_bytes, "differ by up to", [(START, f"        __import__('torch').seed()\n{START}")]),
    (
        methods.check_resume,
        "resumed, the result differs",
        [
            (
                "@dataclass(frozen=True)",
                '''class Odd(Inverse):
    """Counts its own steps where no checkpoint looks."""

    counts = None

    def losses(self, batch, progress):
        self.counts = [] if self.counts is None else self.counts
        self.counts.append(1)
        return {"data": super().losses(batch, progress)["data"] * (1 + (len(self.counts) % 7))}


@dataclass(frozen=True)''',
            ),
            ("problem = Inverse(", "problem = Odd("),
        ],
    ),
]


@pytest.mark.parametrize(("check", "says", "changes"), BROKEN, ids=[f"{c.__name__}: {s}" for c, s, _ in BROKEN])
def test_broken_methods_are_caught(made, check: Callable, says: str, changes: list[tuple[str, str]]) -> None:
    with pytest.raises(AssertionError, match=says):
        check(made(*changes))


BOX = Box((0.0, 0.0, 0.0), (20.0, 20.0, 20.0))


class Wrong(Field):
    """A field with one promise broken, which one is set from outside."""

    how = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = super().forward(x)
        if self.how == "batch":
            return value + x.shape[0]
        return value * float("nan") if self.how == "nan" else value

    def value_and_jacobian(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, jacobian = super().value_and_jacobian(x)
        return value, jacobian * (1.2 if self.how == "jacobian" else 1)


@pytest.mark.parametrize(
    ("how", "says"), [("batch", "batch of shape"), ("nan", "not finite"), ("jacobian", "finite differences"), ("closure", "deep copy")]
)
def test_broken_fields_are_caught(how: str, says: str) -> None:
    field = Wrong(Siren(width=16, depth=2), BOX, unit="HU", seed=0)
    check_field(field)
    field.how = how
    if how == "closure":
        field.net.forward = lambda u, original=field.net.forward: original(u)
    with pytest.raises(AssertionError, match=says):
        check_field(field)


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        (lambda f, at: f(at) ** 2, "not linear"),
        (lambda f, at: f(at) - f(at).mean(0), "one by one"),
        (lambda f, at: f(at) / 0, "not finite"),
        (lambda f, at: f(at).detach() + 0 * f(at), "finite differences"),
    ],
)
def test_broken_operators_are_caught(operator: Callable, says: str) -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) * 20
    check_operator(lambda f, at: f(at), x)
    with pytest.raises(AssertionError, match=says):
        check_operator(operator, x)


def test_wrong_adjoint_is_caught() -> None:
    a = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    check_adjoint(lambda x: a @ x, lambda y: a.T @ y, torch.zeros(5))
    with pytest.raises(AssertionError, match="adjoint"):
        check_adjoint(lambda x: a @ x, lambda y: 1.01 * a.T @ y, torch.zeros(5))
