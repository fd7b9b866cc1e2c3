"""A run that is killed with SIGKILL at any moment and started again gives the bytes it would have given."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from medfields.errors import OutputError
from medfields.kernels import mlp
from medfields.solve import Curves, Inverse, Listener, Problem, Run, checkpoint
from medfields.solve.optimise import LAZY_ROWS
from medfields.solve.stage import Stage
from medfields.space import Grid, Samples, Volume


class Net(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 1))
        self.table = nn.Parameter(torch.zeros(rows, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + self.table[(x[:, 0] * 100).long() % len(self.table)]


class Wave(Inverse):
    """A fit with everything that could be lost: a schedule kept in a buffer, data that change, jitter from the global generator."""

    def __init__(self, held_out: float = 0.0, rows: int = 50):
        g = torch.Generator().manual_seed(1)
        x = torch.rand(60, 1, generator=g)
        y = (6 * x).sin() + 0.3 * torch.randn(60, 1, generator=g)
        super().__init__(Net(rows), lambda field, at: field(at), Samples(x, y), n=16, held_out=held_out)

    def before_step(self, progress: float) -> None:
        self.field.calls += 1
        with torch.no_grad():
            self.train_on.value.mul_(1.0 + 1e-4)  # not persistent, but written to

    def losses(self, batch: Samples, progress: float) -> dict[str, torch.Tensor]:
        jitter = 0.01 * torch.randn_like(batch.at)
        return {**super().losses(Samples(batch.at + jitter, batch.value), progress),
                "small": (1e-3 + 1e-5 * self.field.calls) * self.field(batch.at).square().mean()}


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.zeros(4))


def two_stages(run: Run) -> torch.Tensor:
    """Fit, a random change in plain Python between the stages, a loop without gradients, a second fit."""
    p = Wave(rows=LAZY_ROWS)  # a table long enough for the lazy update
    run.fit(p, steps=60, lr={"": 1e-2, "field.layers.0": 1e-3}, name="first", schedule="cosine")
    with torch.no_grad():
        p.field.layers[0].weight += 0.1 * torch.randn(16, 1) + 0.1 * torch.rand(16, 1, generator=run.generator("kick"))
    state = Vector()
    for k in run.steps(30, "loop", state):
        state.x += torch.rand(4) * torch.rand(4, generator=run.generator("kick")) / (k + 1)
        run.report(norm=state.x.norm())
    q = Wave(rows=LAZY_ROWS)
    q.load_state_dict(p.state_dict())
    run.fit(q, steps=60, lr=1e-2, name="second", optimiser="adamax", schedule="exponential")
    return flat(q, state)


def early_stop(run: Run) -> torch.Tensor:
    p = Wave(held_out=0.3)
    run.fit(p, steps=5000, lr=3e-2, name="fit", patience=8, every=5)
    assert run.stages[0]["stopped"] == "held out"
    return flat(p)


def flat(*modules: nn.Module) -> torch.Tensor:
    return torch.cat([t.detach().double().ravel() for m in modules for t in [*m.parameters(), *m.buffers()]])


JOBS = {"two stages": two_stages, "early stop": early_stop}


def work(job: str, folder: str, started: Connection, die: str = "") -> None:
    """The process that is killed. `die` makes it kill itself at a moment that chance rarely meets."""
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # the test kills processes, not the power
    if die == "before rename":
        fail_at_call(os, "replace", 40, lambda source, target: str(target).endswith(".ckpt"))
    elif die == "after stage":
        fail_at_call(Stage, "finish", 1, lambda *_: True, after=True)
    started.send(time.time())
    result = JOBS[job](Run(folder, seed=3, checkpoint_seconds=0.0, device="cpu"))
    Path(folder, "result").write_bytes(result.numpy().tobytes())
    started.send(time.time())


def fail_at_call(owner: Any, name: str, count: int, counts: Callable[..., bool], after: bool = False) -> None:
    """The process dies in its `count`-th call of owner.name for which `counts` holds, before or after doing it."""
    true, left = getattr(owner, name), [count]

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= counts(*args[:2])
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = true(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


@pytest.fixture(scope="module")
def begin() -> Callable[..., tuple[BaseProcess, Connection]]:
    """Starts `work` in a process forked from a server that has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medfields.solve", "torch._dynamo"])  # the second is what the first step of an optimiser loads

    def start(*args: str) -> tuple[BaseProcess, Connection]:
        mine, its = context.Pipe()
        process = context.Process(target=work, args=(*args[:2], its, *args[2:]))
        process.start()
        its.close()
        return process, mine

    return start


def to_the_end(begin, job: str, folder: Path) -> float:
    """Seconds the job took."""
    process, told = begin(job, str(folder))
    process.join()
    assert process.exitcode == 0
    return -told.recv() + told.recv()


def written_since(moment: float, folder: Path) -> bool:
    """Whether a checkpoint was renamed into its place after that time."""
    return folder.exists() and folder.stat().st_mtime > moment and any(folder.glob("*.ckpt"))


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_random_moments(begin, tmp_path, job):
    seconds = to_the_end(begin, job, tmp_path / "whole")
    in_the_middle = 0
    for life in range(6):
        process, told = begin(job, str(tmp_path / "killed"))
        born = told.recv()
        while life % 2 == 0 and process.is_alive() and not written_since(born, tmp_path / "killed"):
            time.sleep(0.001)
        # The first kill follows its first checkpoint at once: a quick machine may be through before any later moment.
        process.join(random.uniform(0, 0.4) * seconds if life else 0)
        in_the_middle += process.exitcode is None and written_since(born, tmp_path / "killed")
        process.kill()
        process.join()
    to_the_end(begin, job, tmp_path / "killed")
    assert in_the_middle >= 1, "no kill hit the run: the test says nothing"
    assert (tmp_path / "killed" / "result").read_bytes() == (tmp_path / "whole" / "result").read_bytes()
    assert not list((tmp_path / "killed").glob(".medfields-*"))
    steps = next(iter(Curves.read(tmp_path / "killed" / "log.jsonl").stages.values())).steps
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(("job", "moment", "times"), [("two stages", "before rename", 3), ("two stages", "after stage", 3),
                                                      ("early stop", "before rename", 2), ("early stop", "after stage", 1)])
def test_killed_at_the_worst_moments(begin, tmp_path, job, moment, times):
    to_the_end(begin, job, tmp_path / "whole")
    for _ in range(times):
        process, _ = begin(job, str(tmp_path / "killed"), moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    to_the_end(begin, job, tmp_path / "killed")
    assert (tmp_path / "killed" / "result").read_bytes() == (tmp_path / "whole" / "result").read_bytes()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Stop(Exception):
    pass


class Until(Listener):
    """Interrupts a stage at its first event after `step`."""

    def __init__(self, stage: str):
        self.stage = stage

    def event(self, event) -> None:
        if event.stage == self.stage and not event.done:
            raise Stop


def interrupted(folder: Path, stage: str, **kwargs) -> None:
    run = Run(folder, checkpoint_seconds=0.0, listeners=[Until(stage)], **kwargs)
    with pytest.raises(Stop):
        two_stages(run)


def messages(folder: Path) -> list[str]:
    return [note["message"] for note in Curves.read(folder / "log.jsonl").notes if "message" in note]


def test_finished_stages_are_not_computed_again(tmp_path, monkeypatch):
    expected = two_stages(Run(tmp_path, seed=1))
    monkeypatch.setattr(Problem, "__call__", None)
    monkeypatch.setattr(Wave, "losses", None)
    again = Run(tmp_path, seed=1)
    assert torch.equal(two_stages(again), expected)
    assert messages(tmp_path) == ["first: reloaded", "loop: reloaded", "second: reloaded"]
    assert [s["stage"] for s in again.stages] == ["first", "loop", "second"]


@pytest.mark.parametrize(("change", "reason"), [({"seed": 2}, "arguments"), ({"config": {"lr": 1}}, "config"), ({"data": "other"}, "data")])
def test_a_stale_fingerprint_starts_again_with_all_later_stages(tmp_path, change, reason):
    two_stages(Run(tmp_path, seed=1))
    new = two_stages(Run(tmp_path, **{"seed": 1, **change}))
    first, *later = messages(tmp_path)
    assert first.startswith("first: starting again") and reason in first and later == []
    assert torch.equal(new, two_stages(Run(**{"seed": 1, **change})))


def test_other_measurements_or_settings_start_again(tmp_path):
    def fit(scale: float = 1.0, n: int = 16) -> torch.Tensor:
        run, p = Run(tmp_path, seed=1), Wave()
        p.train_on.value *= scale
        p.n = n
        run.fit(p, steps=5, lr=1e-2, name="fit")
        return flat(p.field)

    a, b, c = fit(), fit(scale=2.0), fit(scale=2.0, n=8)
    assert not torch.equal(a, b) and not torch.equal(b, c)
    assert "start values" in messages(tmp_path)[0] and "settings" in messages(tmp_path)[1]


def test_a_changed_loop_without_state_starts_later_stages_again_and_an_unchanged_one_does_not(tmp_path):
    def job(n: int) -> list[str]:
        before = len(messages(tmp_path))
        run = Run(tmp_path, seed=1)
        for _ in run.steps(n, "interpolate"):
            pass
        run.fit(Wave(), steps=2, lr=1e-2, name="fit")
        return messages(tmp_path)[before:]

    assert job(3) == [] and job(3) == ["fit: reloaded"]
    assert job(4) == ["fit: starting again, because of other earlier stages"]


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_a_loop_that_is_left_breaks_again_at_the_same_step(tmp_path, seconds):
    """Also where it was left before its first checkpoint: what came after it is not computed again."""

    def job(folder: Path) -> tuple[torch.Tensor, dict[str, Any]]:
        run, state = Run(folder, seed=1, checkpoint_seconds=seconds), Vector()
        for _ in run.steps(50, "cg", state):
            state.x += torch.rand(4)
            run.report(norm=state.x.norm())
            if state.x[0] > 5:
                break
        run.fit(Wave(), steps=2, lr=1e-2, name="fit")
        return state.x.clone(), run.stages[0]

    (a, first), (b, second) = job(tmp_path), job(tmp_path)
    assert torch.equal(a, b) and first["stopped"] == second["stopped"] == "left" and first["step"] == second["step"]
    assert messages(tmp_path)[-1] == "fit: reloaded" and (seconds > 0 or messages(tmp_path)[0].startswith("cg: going on"))


def test_another_kind_of_device_is_another_computation(tmp_path, monkeypatch):
    """Its random states are of another kind, so they could not be loaded."""
    cpu, again, far = (Run(tmp_path / name, seed=1) for name in "abc")
    wave = Wave()
    prints = [run._stage("fit", 1, wave, {}, None).fingerprint for run in (cpu, again)]
    far.device = torch.device("meta")
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    other = far._stage("fit", 1, wave, {}, None).fingerprint
    assert prints[0] == prints[1] and prints[0] | {"arguments": ""} == other | {"arguments": ""} and prints[0] != other


def test_reading_a_volume_changes_no_setting():
    """A problem whose first stage was computed is the same to the second as one whose first stage was reloaded."""
    def settings(problem: nn.Module) -> str:
        return checkpoint.fingerprint("", problem, {}, {}, "", "1")["settings"]

    wave = Wave()
    wave.prior = Volume(torch.rand(5, 5, 5), Grid.from_spacing((5, 5, 5), 1.0), interpolation="cubic")
    before = settings(wave)
    wave.prior(torch.rand(3, 3))
    assert settings(wave) == before
    wave._scale = 2.0  # what an author keeps for himself counts too
    assert settings(wave) != before


def test_moments_of_a_single_number_go_where_the_number_is():
    p = torch.nn.Parameter(torch.tensor(1.0))
    adam = torch.optim.Adam([p], lr=0.1)
    p.square().backward()
    adam.step()
    state, numbers = checkpoint.optimiser_state(adam)
    far = torch.nn.Parameter(torch.empty((), device="meta"))
    other = torch.optim.Adam([far], lr=0.1)
    checkpoint.load_optimiser_state(other, state, numbers)
    assert {key: value.device.type for key, value in other.state[far].items()} == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_a_resumed_run_keeps_the_precision_it_began_with(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDFIELDS_MLP", raising=False)
    for began, measured in (("fp32", "bf16"), ("bf16", "fp32")):
        mlp.set_policy(began)
        two_stages(Run(tmp_path / began))
        mlp.set_policy(measured)
        two_stages(Run(tmp_path / began))
        assert mlp.policy() == began and messages(tmp_path / began)[0] == "first: reloaded"
    monkeypatch.setenv("MEDFIELDS_MLP", "fp32")  # a wish of the user counts, and is another computation
    mlp.set_policy("fp32")
    two_stages(Run(tmp_path / "bf16"))
    assert mlp.policy() == "fp32" and "first: starting again, because of other arguments" in messages(tmp_path / "bf16")
    mlp.set_policy(None)


def test_resume_false_forgets(tmp_path):
    two_stages(Run(tmp_path, seed=1))
    two_stages(Run(tmp_path, seed=1, resume=False))
    assert messages(tmp_path) == []


def test_a_damaged_checkpoint_is_not_believed(tmp_path):
    expected = two_stages(Run(tmp_path, seed=1))
    path = tmp_path / "02-loop.ckpt"
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(two_stages(Run(tmp_path, seed=1)), expected)
    assert messages(tmp_path) == ["first: reloaded"]


def test_measurements_stay_out_of_the_checkpoint_unless_they_changed(tmp_path):
    from safetensors import safe_open

    p = Wave()
    p.before_step = lambda progress: None  # type: ignore[method-assign]
    Run(tmp_path / "a").fit(p, steps=2, lr=1e-2, name="fit")
    Run(tmp_path / "b").fit(Wave(), steps=2, lr=1e-2, name="fit")

    def kept(folder: str) -> set[str]:
        with safe_open(tmp_path / folder / "01-fit.ckpt", framework="pt") as file:
            return {name for name in file.keys() if name.startswith("model.train_on")}  # noqa: SIM118

    assert kept("a") == set() and kept("b") == {"model.train_on.value"}


def test_the_time_of_earlier_lives_counts(tmp_path):
    interrupted(tmp_path, "second", seed=1, seconds=1000.0)
    path = tmp_path / "01-first.ckpt"
    from medfields.solve import checkpoint

    tensors, header = checkpoint.read(path)
    checkpoint.write(path, tensors, {**header, "used": 990.0})
    run = Run(tmp_path, seed=1, seconds=1000.0)
    two_stages(run)
    assert run.used > 990


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Run(tmp_path / "file" / "run")


def test_an_interrupted_stage_goes_on_in_the_same_process(tmp_path):
    expected = two_stages(Run(seed=1))
    shutil.rmtree(tmp_path)
    interrupted(tmp_path, "second", seed=1)
    assert torch.equal(two_stages(Run(tmp_path, seed=1)), expected)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["stage"] == "first"
