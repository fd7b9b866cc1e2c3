"""Imports point down, and asking for help costs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_contracts_are_kept() -> None:
    words = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, medfields; print([m for m in ('torch', 'numpy', 'scipy', 'numba', 'matplotlib', 'tyro') if m in sys.modules])"
    assert python(code) == "[]"


@pytest.mark.parametrize("words", ["--help", "--version", "list --task superres", "list --help", "show cubic-mean", "cite cubic-mean"])
def test_asking_loads_no_torch(words: str) -> None:
    python(f"""
import sys
from medfields.cli.main import main
try:
    code = main({words.split()!r})
except SystemExit as end:
    code = end.code
sys.exit(code or ("torch was loaded" if "torch" in sys.modules else 0))
""")


def test_public_names_are_there() -> None:
    assert python("import medfields; print(all(getattr(medfields, n) is not None for n in medfields.__all__))") == "True"
    assert "no attribute 'nonsense'" in python("""
import medfields
try:
    medfields.nonsense
except AttributeError as error:
    print(error)
""")


def test_waiting_threads_sleep_unless_the_user_says_otherwise() -> None:
    code = "import os, medfields; print(os.environ['OMP_WAIT_POLICY'])"
    assert python(code) == "PASSIVE"
    assert python(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
