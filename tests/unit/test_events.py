"""What a run tells: the log, its reader, the terminal, the run folder."""

from __future__ import annotations

import io
import json
import math
import tomllib

import torch
from rich.console import Console

from medfields.solve import Curves, Event, JsonLines, Terminal
from medfields.solve.record import environment, to_toml


def event(step: int, **change) -> Event:
    return Event(**{"stage": "fit", "step": step, "steps": 100, "seconds": step / 10, "terms": {"data": 1 / step}, **change})


def test_a_log_is_read_back(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    for k in (1, 5, 9):
        log.event(event(k))
    log.event(event(2, stage="refine", terms={"data": math.nan}))
    log.note({"weight": 0.25})
    curves = Curves.read(tmp_path / "log.jsonl")
    assert curves.stages["fit"].steps == [1, 5, 9] and curves.stages["fit"].terms == {"data": [1, 1 / 5, 1 / 9]}
    assert math.isnan(curves.stages["refine"].terms["data"][0]) and curves.notes == [{"weight": 0.25}]
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert "NaN" not in line and json.loads(line)


def test_a_torn_line_is_dropped_and_repeated_steps_replace_the_first(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    for k in (1, 5, 9):
        log.event(event(k))
    with path.open("a") as file:
        file.write('{"stage": "fit", "st')
    assert Curves.read(path).stages["fit"].steps == [1, 5, 9]
    JsonLines(path).event(event(5, terms={"data": 7.0}))
    assert Curves.read(path).stages["fit"].steps == [1, 5]
    assert Curves.read(path).stages["fit"].terms["data"] == [1, 7.0]


def test_terms_that_come_and_go_keep_their_places(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.event(event(1))
    log.event(event(2, terms={"edges": 3.0}))
    terms = Curves.read(tmp_path / "log.jsonl").stages["fit"].terms
    assert math.isnan(terms["edges"][0]) and terms["edges"][1] == 3 and math.isnan(terms["data"][1])


def test_no_log_is_no_curves(tmp_path):
    assert Curves.read(tmp_path / "nothing.jsonl").stages == {}


def test_the_terminal_is_quiet_about_short_stages_and_plain_without_a_tty():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, soft_wrap=True), every=0.0)
    terminal.event(event(10))
    terminal.event(event(19, done=True))
    assert out.getvalue() == ""
    terminal.event(event(50, eta=65.0))
    terminal.event(event(100, done=True))
    assert out.getvalue() == "fit: step 50/100, 1:05 left  data 0.02\nfit: 100 steps in 10.0 s  data 0.01\n"


def test_lines_without_a_tty_come_now_and_then():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, soft_wrap=True), every=1000.0)
    for k in range(50, 60):
        terminal.event(event(k))
    assert out.getvalue().count("\n") == 1


def test_toml_says_what_the_config_said():
    config = {"steps": 10, "lr": 1e-5, "name": 'a "b" \\ é', "flag": True, "sizes": [1, 2.5], "none": None,
              "net": {"kind": "MLP", "encoding": {"kind": "Fourier", "sigma": float("inf")}}, "odd key": {"x.y": 1}}
    text = to_toml(config)
    expected = {k: v for k, v in config.items() if v is not None}
    assert tomllib.loads(text) == expected


def test_the_environment_names_versions_and_machine():
    facts = environment(torch.device("cpu"))
    assert facts["torch"] == torch.__version__ or facts["torch"] in torch.__version__
    assert facts["threads"] == torch.get_num_threads() and facts["cpu"] and json.dumps(facts)
