"""What a run folder says about itself: env.json, config.toml, summary.json."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import FileError
from ..io.atomic import atomic
from ..kernels import mlp

STAGES = "stages"  # folder of the volumes on the way to a result


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine, for the report and for anyone who wants to repeat the run."""
    packages = ("torch", "numpy", "scipy", "numba", "triton")
    return {
        "medfields": __version__,
        "python": platform.python_version(),
        **{name: v for name in packages if (v := _version(name))},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "mlp": mlp.policy(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu() -> str:
    """The processor's own name; `platform.processor` does not know it on Linux."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def keep_precision(path: Path) -> None:
    """Take up the precision of networks that the env.json of an earlier life names, unless MEDFIELDS_MLP asks for one.

    It is chosen by a measurement, which may come out differently the next time, and other rounding is other bytes.
    """
    if os.environ.get("MEDFIELDS_MLP") or not path.exists():
        return
    try:
        policy = json.loads(path.read_text(encoding="utf-8")).get("mlp")
    except (ValueError, AttributeError) as error:
        raise FileError(f"{path} is damaged", "delete the run folder to start again") from error
    if policy is not None:
        mlp.set_policy(policy)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Facts as JSON, written whole or not at all."""
    write_text(path, json.dumps(facts, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8, written whole or not at all."""
    with atomic(path) as place:
        place.write_text(text, encoding="utf-8")


def to_toml(config: Mapping[str, Any], table: str = "") -> str:
    """A dict of numbers, texts, booleans, lists of them and further dicts as TOML; None, which TOML lacks, is left out."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in config.items() if v is not None and not isinstance(v, Mapping)]
    text = "".join(line + "\n" for line in lines)
    for key, value in config.items():
        if isinstance(value, Mapping):
            name = f"{table}.{_key(key)}" if table else _key(key)
            text += f"\n[{name}]\n{to_toml(value, name)}"
    return text


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)  # TOML, too, writes inf and nan
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    return str(value) if isinstance(value, int) else json.dumps(str(value), ensure_ascii=False)
