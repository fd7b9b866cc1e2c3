"""The entry point: what it costs, what it says, how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from medfields import plugins
from medfields.cli import main as module
from medfields.errors import InputError

LIGHT = [("--help",), ("--version",), ("list",), ("show", "srr-cg"), ("cite", "srr-cg"), ("list", "--help"), ("no-such-command",)]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands_load_neither_torch_nor_numpy(words: tuple[str, ...]) -> None:
    done = python(f"""
import sys
from medfields.cli.main import main
try:
    main({list(words)!r})
except SystemExit:
    pass
print("loaded", sorted({{"torch", "numpy", "numba", "nibabel"}} & set(sys.modules)))""")
    assert done.stdout.endswith("loaded []\n"), done.stdout[-300:] + done.stderr


def test_help_is_quick_to_compute() -> None:
    done = python("""
import resource
from medfields.cli.main import main
main(["--help"]); main(["list"])
print("cpu", resource.getrusage(resource.RUSAGE_SELF).ru_utime)""")
    assert float(done.stdout.split()[-1]) < 0.5  # processor time, not wall time: a busy machine does not matter


def test_it_can_be_run_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "medfields", "--version"], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("medfields ")


def test_help_names_every_command(medfields) -> None:
    said = medfields("--help")
    assert said.code == 0
    assert all(f"  {name} " in said.out for name in [*module.TASKS, *module.COMMANDS])


def test_every_command_has_a_help(medfields) -> None:
    for name in [*module.COMMANDS, *module.TASKS]:
        words = (name, "--help") if name in module.COMMANDS else (name, "--method", plugins.default(name), "--help")
        said = medfields(*words)
        assert said.code == 0 and f"usage: medfields {name}" in said.out, name


def test_unknown_command_names_the_nearest(medfields) -> None:
    said = medfields("superes")
    assert (said.code, said.err) == (9, "medfields: error: there is no command called 'superes'\nhint: did you mean 'superres'?\n")


def test_expected_errors_are_two_lines_and_bugs_keep_their_traceback(medfields, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException):
        def run(words: list[str]) -> int:
            raise error

        return run

    monkeypatch.setattr(module, "_run", raising(InputError("first\nsecond", "do   this")))
    said = medfields("any")
    assert (said.code, said.err) == (2, "medfields: error: first second\nhint: do this\n")
    with pytest.raises(InputError):
        module.main(["any", "--debug"])
    monkeypatch.setattr(module, "_run", raising(KeyboardInterrupt()))
    said = medfields("any")
    assert said.code == 130 and "run the same command again to resume" in said.err
    monkeypatch.setattr(module, "_run", raising(LookupError("a bug")))
    with pytest.raises(LookupError):
        module.main(["any"])


def test_interrupt_ends_with_130_and_the_next_call_goes_on(tmp_path: Path, stacks: tuple[Path, Path]) -> None:
    words = ["superres", *map(str, stacks), "-o", "iso.nii.gz", "--method", "siren", "--net.width", "16", "--nodes", "2", "--samples", "64"]
    command = [sys.executable, "-m", "medfields.cli.main", *words, "--steps", "1000000", "--held-out", "0"]  # nothing else stops it
    # Tests that run in the background have interrupts ignored, and their children would inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    log = tmp_path / "iso.run/log.jsonl"
    try:
        for _ in range(600):
            if process.poll() is not None or (log.exists() and '"step"' in log.read_text()):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "run the same command again to resume" in said and "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iso.run"]


def test_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medfields.cli.main", "show", "nothing-like-it"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 9 and done.stderr.startswith("medfields: error: there is no method") and "Traceback" not in done.stderr
