"""What every test may count on: one thread, no windows, no deadlines on a busy machine."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import hypothesis
import pytest
import torch

from medfields.errors import FileError

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the shared images; tests that need them skip where they are not."""
    from medfields.evaluate.families import data_folder

    try:
        return data_folder()
    except FileError as error:
        pytest.skip(str(error))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
