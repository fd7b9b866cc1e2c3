"""What every method promises. Each check takes the class, runs it with its `tiny` overrides on generated data, and says what is wrong."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ..card import Card
from ..fields import Field
from ..io import read_field, write_field
from ..solve import Method, Run, checkpoint
from ..space import Volume

MOST_LINES = 120


class _Killed(BaseException):
    """Stands for `kill -9`: no method catches it."""


@contextmanager
def _killing(spared: set[str]) -> Iterator[None]:
    """Inside, a run dies as soon as a stage that is not among the spared has a checkpoint of a few steps."""
    write = checkpoint.write

    def deadly(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
        write(path, tensors, header)
        if not header["done"] and header["step"] >= 3 and path.name not in spared:
            spared.add(path.name)
            raise _Killed

    with patch.object(checkpoint, "write", deadly):
        yield


def check_method(method: type[Method]) -> None:
    """Run all checks on a method class; tens of seconds at most.

    Raises:
        AssertionError: the first promise that is broken.
    """
    for check in METHOD_CHECKS:
        check(method)


def check_card(method: type[Method]) -> None:
    """The docstring of the file says what the method needs, gives, changes, and when to use it."""
    card = Card.of(method)
    is_cited = re.search(r"10\.\d{4,9}/|arxiv|https?://", method.paper, re.IGNORECASE)
    known = is_cited or method.fidelity in ("ours", "interpreted")  # some papers of the list are known by their title alone
    assert known, f"paper = {method.paper!r} names no DOI, arXiv number or address"
    wanted = {"Needs": card.needs, "Gives": card.gives, "Use when": card.use_when}
    if method.fidelity in ("published", "interpreted"):
        wanted |= {"Deviations": card.deviations, "Fidelity": card.fidelity}
    missing = [label for label, text in wanted.items() if not text]
    assert not missing, f"the card lacks {', '.join(f'{label}:' for label in missing)} each begins a line of the file's docstring"
    assert len(card.line) <= 140, f"the first line of the card has {len(card.line)} characters; `medfields list` has room for 140"


def check_file(method: type[Method]) -> None:
    """The file is short and imports no other method."""
    path = Path(inspect.getfile(method))
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES, f"{path.name} has {len(text.splitlines())} lines, the limit is {MOST_LINES}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}"]
            beside = node.level == 1 and "medfields" in path.parts
            assert not beside, f"{path.name}, line {node.lineno}: imports a neighbour; a method imports no other method"
        wrong = [n for n in names if re.match(r"(medfields|\.)\.(methods|classical)\b", n)]
        assert not wrong, f"{path.name}, line {node.lineno}: imports {wrong[0]}; a method imports no other method"


def check_hyper_parameters(method: type[Method]) -> None:
    """The fields of the frozen dataclass have defaults and can be written down as plain values."""
    assert method.__dataclass_params__.frozen, "write @dataclass(frozen=True) above the class"  # type: ignore[attr-defined]
    for f in dataclasses.fields(method):
        has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        assert has_default, f"the hyper-parameter '{f.name}' has no default: give the published value"
    unknown = set(method.tiny) - {f.name for f in dataclasses.fields(method)}
    assert not unknown, f"tiny overrides what is no hyper-parameter: {', '.join(sorted(unknown))}"
    json.dumps(method().config())


def check_result(method: type[Method]) -> None:
    """A field or a volume, finite, with one channel for each contrast where the case has contrasts; case and prior are as before."""
    for case in _cases(method):
        before = case.fingerprint()
        run = Run()
        prior = _prior(method, run)
        kept = {k: v.clone() for k, v in prior.state_dict().items()} if prior is not None else {}
        result = method.for_tests().solve(case, run, prior)
        assert isinstance(result, Field | Volume), f"solve gave a {type(result).__name__}, expected a Field or a Volume"
        data = _values(result, case)
        assert torch.isfinite(data).all(), "the result is not finite"
        assert float(data.max()) > float(data.min()), "the result is constant"
        expected = len(getattr(case, "contrasts", ())) or len(data)
        assert len(data) == expected, f"the result has {len(data)} channels for {expected} contrasts"
        assert case.fingerprint() == before, "solve changed its case"
        if prior is not None:
            same = all(torch.equal(v, kept[k]) for k, v in prior.state_dict().items())
            assert same, "solve changed its prior: copy what is to be trained"


def check_file_of_result(method: type[Method]) -> None:
    """A field read back from its .field file answers with the same bytes."""
    case = _cases(method)[-1]
    result = _solve(method, case)
    if not isinstance(result, Field):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.field"
        write_field(result, path)
        again = read_field(path)
    assert torch.equal(_values(again, case), _values(result.to("cpu"), case)), "the field read back from its file gives other values"


def check_same_seed_same_bytes(method: type[Method]) -> None:
    """Two runs with one seed give the same bytes."""
    case = _cases(method)[-1]
    first, second = (_values(_solve(method, case), case) for _ in range(2))
    apart = float((first - second).abs().max())
    assert torch.equal(first, second), f"two runs with the same seed differ by up to {apart:.3g}: draw from run.generator(...)"


def check_resume(method: type[Method]) -> None:
    """Killed once in every stage and started again, a run ends with the bytes of the uninterrupted one."""
    case = _cases(method)[-1]
    with tempfile.TemporaryDirectory() as folder:
        whole = _values(_solve(method, case, Path(folder) / "whole"), case)
        spared: set[str] = set()
        result = None
        while result is None:
            with suppress(_Killed), _killing(spared):
                result = _solve(method, case, Path(folder) / "killed")
        again = _values(result, case)
    apart = float((again - whole).abs().max())
    hint = "what changes must be in parameters or buffers"
    assert torch.equal(again, whole), f"killed in {', '.join(sorted(spared))} and resumed, the result differs by up to {apart:.3g}: {hint}"


METHOD_CHECKS: tuple[Callable[[type[Method]], None], ...] = (
    check_card,
    check_file,
    check_hyper_parameters,
    check_result,
    check_file_of_result,
    check_same_seed_same_bytes,
    check_resume,
)


def _cases(method: type[Method], seed: int = 0) -> list[Any]:
    """Generated cases of the type that `solve` asks for: a plain one, and one of two contrasts where that type has them."""
    kind = typing.get_type_hints(method.solve).get("case")
    assert kind is not None and hasattr(kind, "toy"), "annotate the case of solve with its type, for instance case: Stacks"
    several = "contrasts" in inspect.signature(kind.toy).parameters
    return [kind.toy(seed), *([kind.toy(seed, contrasts=2)] if several else [])]


def _prior(method: type[Method], run: Run) -> torch.nn.Module | None:
    """What the method learns from three other generated subjects, if it learns."""
    if method.learn is Method.learn:
        return None
    return method.for_tests().learn([_cases(method, seed)[0] for seed in (1, 2, 3)], run)


def _solve(method: type[Method], case: Any, folder: Path | None = None) -> Field | Volume:
    with Run(folder, checkpoint_seconds=0.0) as run:
        return method.for_tests().solve(case, run, _prior(method, run))


@torch.no_grad()
def _values(result: Field | Volume, case: Any) -> torch.Tensor:
    """[C, ...] values on the lattice that the case asks for."""
    volume = result if isinstance(result, Volume) else result.on(case.grid).volume()
    return volume.data.cpu()
