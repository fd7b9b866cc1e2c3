"""Run.fit and Run.steps: rates, schedules, budgets, stopping, divergence, stages."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from medfields.errors import Diverged, InputError, OutOfMemory, UnknownName
from medfields.solve import Curves, Event, Inverse, Listener, Method, Problem, Run
from medfields.space import Samples, Volume


class Quadratic(Problem):
    """|w - target|^2, with noise on the target and jitter from the global generator."""

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.net = nn.ParameterDict({"w": torch.zeros(3), "b": torch.zeros(3)})
        self.log_gain = nn.Parameter(torch.zeros(1))
        self.noise = noise
        self.seen: list[float] = []

    def batch(self, rng: torch.Generator) -> torch.Tensor:
        return 1 + self.noise * (torch.randn(3, generator=rng) + torch.randn(3))

    def losses(self, batch: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        self.seen.append(progress)
        terms = {name: (p - batch).square().sum() for name, p in self.net.items()}
        return {**terms, "gain": self.log_gain.square().sum()}


class Ears(Listener):
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.facts: list[dict[str, Any]] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def note(self, facts) -> None:
        self.facts.append(dict(facts))


def test_the_problem_is_solved_in_place_and_returned():
    p = Quadratic()
    assert Run().fit(p, steps=300, lr=0.05, name="fit") is p
    assert torch.allclose(p.net["w"], torch.ones(3), atol=1e-3)
    assert all(q.grad is None for q in p.parameters())


def test_the_longest_prefix_gives_the_rate_and_the_rest_stays():
    p = Quadratic()
    Run().fit(p, steps=1, lr={"net": 0.1, "net.b": 0.01}, name="fit")  # the first step of Adam is the rate
    assert torch.allclose(p.net["w"], torch.full((3,), 0.1)) and torch.allclose(p.net["b"], torch.full((3,), 0.01))
    assert p.log_gain == 0 and p.log_gain.requires_grad


def test_a_prefix_that_fits_nothing_is_an_error_that_names_what_there_is():
    with pytest.raises(InputError, match=r"'nett'.*net\.b.*log_gain|log_gain.*net\.b"):
        Run().fit(Quadratic(), steps=1, lr={"": 0.1, "nett": 0.01}, name="fit")


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("cosine", 0.2), ("exponential", 0.2)])
def test_schedules_begin_at_the_rate_and_end_at_its_final_share(schedule, last):
    used: list[float] = []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            used.append(self.param_groups[0]["lr"])

    Run().fit(Quadratic(), steps=1000, lr=0.5, name="fit", optimiser=Recording, schedule=schedule, final=0.2)
    assert used[0] == 0.5 and used[-1] == pytest.approx(0.5 * last, rel=0.01)
    assert all(a >= b for a, b in pairwise(used))
    if schedule == "exponential":
        assert used[500] == pytest.approx(0.5 * math.sqrt(0.2))


@pytest.mark.parametrize("change", [{"steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"seconds": -1.0}, {"patience": 0}, {"final": 2.0},
                                    {"every": 0}, {"schedule": "exponential", "final": 0.0}])
def test_arguments_that_cannot_be_meant(change):
    with pytest.raises(InputError):
        Run().fit(Quadratic(), **{"steps": 1, "lr": 0.1, "name": "fit", **change})


def test_unknown_optimiser_names_the_nearest():
    with pytest.raises(UnknownName, match="adam"):
        Run().fit(Quadratic(), steps=1, lr=0.1, name="fit", optimiser="adm")


def test_nothing_to_train():
    with pytest.raises(InputError, match="nothing to train"):
        Run().fit(Quadratic().requires_grad_(False), steps=1, lr=0.1, name="fit")


def test_progress_follows_the_larger_share_of_steps_and_time(monkeypatch):
    clock = Clock(monkeypatch)

    class Slow(Quadratic):
        def before_step(self, progress: float) -> None:
            clock.now += 1.0

    p = Slow()
    run = Run()
    run.fit(p, steps=1000, lr=0.1, name="fit", seconds=10.0)
    assert p.seen == pytest.approx([k / 10 for k in range(10)])
    assert run.stages[0]["stopped"] == "time" and run.stages[0]["step"] == 10


def test_the_budget_of_the_run_holds_for_all_stages(monkeypatch):
    clock = Clock(monkeypatch)

    class Slow(Quadratic):
        def before_step(self, progress: float) -> None:
            clock.now += 1.0

    run = Run(seconds=30.0)
    for name in ("first", "second", "third"):
        run.fit(Slow(), steps=20, lr=0.1, name=name)
    assert [(s["step"], s["stopped"]) for s in run.stages] == [(20, "steps"), (10, "time"), (0, "time")]


class Clock:
    """Time that only moves when told to."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def overfitting(n: int = 12, held_out: float = 0.25) -> Inverse:
    """A polynomial of many terms through noisy points: the held-out error falls, then rises."""

    class Polynomial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.zeros(12, 1))

        def forward(self, x):
            return (x ** torch.arange(12)) @ self.c

    g = torch.Generator().manual_seed(3)
    x = torch.rand(n, 1, generator=g) * 2 - 1
    return Inverse(Polynomial(), lambda field, at: field(at), Samples(x, x + 0.5 * torch.randn(n, 1, generator=g)), n=n, held_out=held_out)


def test_early_stopping_returns_the_best_held_out_state():
    p, run = overfitting(), Run()
    run.fit(p, steps=5000, lr=0.02, name="fit", patience=3, every=10)
    stage = run.stages[0]
    assert stage["stopped"] == "held out" and stage["step"] == stage["best_step"] + 30 < 5000
    assert p.held_out().item() == pytest.approx(stage["held_out"])
    trace = overfitting()
    Run().fit(trace, steps=stage["best_step"], lr=0.02, name="fit")
    assert torch.equal(trace.field.c, p.field.c)  # exactly the state after the best step


class Watching(nn.Module):
    """An operator that notes in which mode it was asked with and without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, field, at):
        self.seen.add((torch.is_grad_enabled(), self.training))
        return field(at)


def test_looks_at_the_held_out_measurements_are_not_training():
    p = overfitting()
    p.operator = Watching()
    p.field.eval()  # a part that is not to change its mode keeps it
    Run().fit(p, steps=3, lr=0.02, name="fit", patience=3, every=1)
    assert p.operator.seen == {(True, True), (False, False)}
    assert p.operator.training and not p.field.training


def test_patience_without_held_out_measurements_changes_nothing():
    a, b = overfitting(held_out=0.0), overfitting(held_out=0.0)
    Run().fit(a, steps=50, lr=0.02, name="fit", patience=1, every=1)
    Run().fit(b, steps=50, lr=0.02, name="fit")
    assert torch.equal(a.field.c, b.field.c)


def test_divergence_names_stage_step_and_the_first_bad_term():
    class Bad(Quadratic):
        def losses(self, batch, progress):
            terms = super().losses(batch, progress)
            return {**terms, "edges": terms["w"] * (math.nan if len(self.seen) == 8 else 1.0)}

    run = Run()
    with pytest.raises(Diverged, match=r"'fit' diverged at step 7: the term 'edges'.*learning rate.*checkpoint: none"):
        run.fit(Bad(), steps=100, lr=0.1, name="fit")
    run.fit(Quadratic(), steps=2, lr=0.1, name="a run can go on after a caught error")


def test_weights_that_stop_being_finite_are_named():
    class Root(Quadratic):
        def losses(self, batch, progress):
            return {"w": self.net["w"].sum() + (0 * self.net["b"]).sqrt().sum()}  # finite, its gradient is 0 * inf

    with pytest.raises(Diverged, match=r"step 0: the parameter 'net\.b'"):
        Run().fit(Root(), steps=1, lr=0.1, name="fit")


def test_a_diverging_run_leaves_only_good_checkpoints(tmp_path):
    class Bad(Quadratic):
        def losses(self, batch, progress):
            terms = super().losses(batch, progress)
            return {**terms, "edges": terms["w"] * (math.nan if len(self.seen) > 7 else 1.0)}

    with pytest.raises(Diverged, match=r"01-fit\.ckpt at step 7"):
        Run(tmp_path, checkpoint_seconds=0.0).fit(Bad(), steps=100, lr=0.1, name="fit")


def test_a_loss_that_is_not_one_number():
    class Vector(Quadratic):
        def losses(self, batch, progress):
            return {"w": self.net["w"]}

    with pytest.raises(InputError, match="'w' of Vector"):
        Run().fit(Vector(), steps=1, lr=0.1, name="fit")


def test_running_out_of_memory_names_the_knob():
    class Huge(Quadratic):
        memory = "rays"

        def batch(self, rng):
            return torch.empty(1 << 55)

    with pytest.raises(OutOfMemory, match="lower rays"):
        Run().fit(Huge(), steps=1, lr=0.1, name="fit")


def test_a_run_replays_from_its_seed_whatever_else_drew_random_numbers():
    def result(seed: int, disturb: int) -> torch.Tensor:
        torch.rand(disturb)
        run = Run(seed=seed)
        p = Quadratic(noise=0.1)
        run.fit(p, steps=5, lr=0.1, name="fit")
        return p.net["w"].detach()

    assert torch.equal(result(1, 0), result(1, 17))
    assert not torch.equal(result(1, 0), result(2, 0))


def test_a_stage_leaves_the_global_generator_alone():
    run = Run(seed=5)
    expected = torch.rand(3)
    run = Run(seed=5)
    run.fit(Quadratic(noise=1.0), steps=3, lr=0.1, name="fit")
    for _ in run.steps(3, "loop"):
        torch.rand(2)
    for _ in run.steps(3, "left early"):
        torch.rand(2)
        break
    assert torch.equal(torch.rand(3), expected)


def test_named_generators_depend_on_seed_and_name():
    def draw(seed: int, name: str) -> float:
        return torch.rand(1, generator=Run(seed=seed).generator(name)).item()

    assert draw(0, "a") == draw(0, "a") and len({draw(0, "a"), draw(0, "b"), draw(1, "a")}) == 3


def test_steps_counts_reports_and_stops_at_a_bad_number(tmp_path):
    ears = Ears()
    run = Run(tmp_path, listeners=[ears])
    for k in run.steps(4, "cg"):
        run.report(residual=1.0 / (k + 1))
    assert ears.events[-1].done and ears.events[-1].terms == {"residual": 0.25}
    assert Curves.read(tmp_path / "log.jsonl").stages["cg"].steps[-1] == 4
    with pytest.raises(Diverged, match=r"'pdhg' diverged at step 2: the term 'gap'"):
        for k in run.steps(5, "pdhg"):
            run.report(gap=math.inf if k == 2 else 1.0)


def test_a_stage_inside_a_stage_is_refused():
    run = Run()
    with pytest.raises(InputError, match="inside"):
        for _ in run.steps(2, "outer"):
            run.fit(Quadratic(), steps=1, lr=0.1, name="inner")


def test_events_are_few_and_the_last_is_certain():
    ears = Ears()
    Run(listeners=[ears]).fit(Quadratic(), steps=200, lr=0.1, name="fit")
    assert ears.events[-1].done and ears.events[-1].step == 200 and ears.events[-1].terms.keys() == {"w", "b", "gain"}
    assert len(ears.events) <= 3 + ears.events[-1].seconds * 10


def test_the_run_folder(tmp_path):
    run = Run(tmp_path / "deep" / "run", config={"steps": 3, "net": {"kind": "Siren", "width": 8}})
    run.fit(Quadratic(), steps=3, lr=0.1, name="first / fit")
    run.note(weight=torch.tensor([0.5]))
    run.finish(method="mine")
    folder = tmp_path / "deep" / "run"
    assert {p.name for p in folder.iterdir()} == {"log.jsonl", "env.json", "config.toml", "summary.json", "01-first-fit.ckpt"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["notes"] == {"weight": [0.5]} and summary["stages"][0]["stage"] == "first / fit" and summary["method"] == "mine"
    assert Curves.read(folder / "log.jsonl").notes == [{"weight": [0.5]}]


@pytest.mark.parametrize("kwargs", [{"device": "abacus"}, {"seconds": 0.0}])
def test_impossible_runs(kwargs):
    with pytest.raises(InputError):
        Run(**kwargs)


def method_class(**body):
    facts = {"__doc__": "A line.\n\nNeeds: much.\nGives: little.", "__module__": "nowhere", "paper": "x", "task": "t", "tiny": {}}
    return type("Mine", (Method,), {**facts, "solve": lambda self, case, run, prior=None: None, **body})


@pytest.mark.parametrize(("body", "message"), [
    ({"paper": None}, "'paper'"), ({"tiny": None}, "'tiny'"), ({"__doc__": "A line."}, "no card"), ({"fidelity": "perfect"}, "perfect"),
])
def test_a_method_must_say_what_it_is(body, message):
    with pytest.raises(InputError, match=message):
        method_class(**body)


def test_a_method_must_be_a_dataclass_and_learns_nothing_by_default():
    bare = method_class()
    with pytest.raises(InputError, match="not a dataclass"):
        bare()
    with pytest.raises(InputError, match="learns nothing"):
        dataclass(frozen=True)(method_class())().learn([], Run())


def test_the_config_of_a_method_is_plain():
    from medfields.fields import Siren

    @dataclass(frozen=True)
    class Mine(Method):
        """Mine.

        Needs: stacks.
        Gives: a volume.
        """

        paper: ClassVar[str] = "arXiv:0"
        task: ClassVar[str] = "superres"
        tiny: ClassVar[dict[str, Any]] = {"steps": 2}
        net: Siren = Siren(width=8, depth=1)
        steps: int = 100
        sizes: tuple[int, ...] = (1, 2)

        def solve(self, case: Any, run: Run, prior: nn.Module | None = None) -> Volume:
            raise NotImplementedError

    config = Mine.for_tests().config()
    assert config["steps"] == 2 and config["sizes"] == [1, 2] and config["net"]["kind"] == "Siren" and config["net"]["width"] == 8
    assert json.dumps(config)
