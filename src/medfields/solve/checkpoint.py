"""What must be kept so that a stage can go on after `kill -9`: tensors and facts in one safetensors file, never a pickle."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import OutputError
from ..io.atomic import atomic

FORMAT = "medfields-checkpoint/1"
_BOOKKEEPING = set(vars(nn.Module()))


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OutputError: if the disk refuses.
    """
    # Tied weights share memory, which the format refuses: each name gets its own copy.
    whole = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    with atomic(path) as place:
        try:
            save_file(whole, place, {"medfields": json.dumps({"format": FORMAT, **header})})
        except SafetensorError as error:  # its only reason to fail here is the disk
            raise OutputError(f"cannot write {path}: {error}", "is there room on the disk?") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the CPU) and header of a checkpoint; None if there is none or it cannot be read as one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["medfields"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError):
        return None
    return (tensors, header) if header.get("format") == FORMAT else None


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors with `prefix` before their names."""
    return {prefix + name: t for name, t in tensors.items()}


class Tracked:
    """The tensors of a module that a stage may change.

    Trained parameters and persistent buffers are always kept. Everything else (the measurements, frozen networks) is
    kept only once torch's version counter says that it was written to: the fingerprint of the stage already vouches
    for its bytes at the start.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._persistent = set(module.state_dict(keep_vars=True))
        self._start = {name: (t, _version(t)) for name, t in _tensors(module)}

    def _kept(self, name: str, t: Tensor) -> bool:
        always = t.requires_grad if isinstance(t, nn.Parameter) else name in self._persistent
        start, version = self._start.get(name, (None, 0))
        return always or t is not start or _version(t) != version

    def tensors(self) -> dict[str, Tensor]:
        return {name: t.detach() for name, t in _tensors(self.module) if self._kept(name, t)}

    def clone(self) -> dict[str, Tensor]:
        """A copy on the device, to come back to."""
        return {name: t.clone() for name, t in self.tensors().items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the tensors to earlier values, in place where the shape is the same, so that everyone who holds them sees it."""
        now = dict(_tensors(self.module))
        device = next((t.device for t in now.values()), torch.device("cpu"))
        for name, value in tensors.items():
            current = now.get(name)
            if current is not None and current.shape == value.shape and current.dtype == value.dtype:
                current.copy_(value)
            elif isinstance(current, nn.Parameter):
                current.data = value.to(device, copy=True)
            else:
                owner, _, leaf = name.rpartition(".")
                setattr(self.module.get_submodule(owner), leaf, value.to(device, copy=True))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of an optimiser as tensors named "parameter number/key" and, for plain numbers, a JSON dict of the same keys.

    torch's own `load_state_dict` casts integer state to the type of the parameter, so state is read and set directly.
    """
    state = {f"{i}/{key}": value for i, p in enumerate(_parameters(optimiser)) for key, value in optimiser.state.get(p, {}).items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def load_optimiser_state(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Set what `optimiser_state` read. Step counts stay on the CPU where torch keeps them, unless it is fused."""
    parameters = _parameters(optimiser)
    fused = any(group.get("fused") or group.get("capturable") for group in optimiser.param_groups)
    for name, value in {**tensors, **numbers}.items():
        i, _, key = name.partition("/")
        p = parameters[int(i)]
        if isinstance(value, Tensor) and value.shape == p.shape and value.ndim:
            # With the strides of the parameter: fused optimisers walk through the memory of both in one order.
            optimiser.state[p][key] = torch.empty_like(p, dtype=value.dtype).copy_(value)
        else:
            count = key in ("step", "mu_product")  # by name: moments of a single-number parameter look the same
            on_device = isinstance(value, Tensor) and (fused or not count)
            optimiser.state[p][key] = value.to(p.device) if on_device else value


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def fingerprint(before: str, module: nn.Module | None, arguments: Mapping[str, Any], config: Mapping[str, Any], data: str,
                version: str) -> dict[str, str]:
    """What a stage's result depends on, as named hashes; if any differs, the stage and all later ones start again.

    Args:
        before: identity of the stage before this one.
        module: the problem at the start of the stage; its tensors, plain attributes and source file count.
        arguments: of the stage, JSON-able.
        config: resolved hyper-parameters of the method.
        data: identity of the input files.
        version: of the package.
    """
    parts = {"earlier stages": before, "arguments": digest(arguments), "config": digest(config), "data": data, "version": version}
    if module is not None:
        source = getattr(sys.modules.get(type(module).__module__), "__file__", None)
        parts["code"] = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source and Path(source).is_file() else ""
        parts["settings"] = digest({name: identity(_attributes(m)) for name, m in module.named_modules()})
        parts["start values"] = digest(identity(module))
    return parts


def identity(value: Any) -> Any:
    """A JSON-able stand-in that is equal where the value is: arrays become hashes, objects without a known content None."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and value.layout != torch.strided:
        sparse = value.detach().to_sparse_coo().coalesce()
        return [list(value.shape), identity(sparse.indices()), identity(sparse.values())]
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        octets = flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy()  # an expanded single number has stride 0
        return [str(value.dtype), list(value.shape), hashlib.blake2b(octets.data).hexdigest()]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, nn.Module):
        return {name: identity(t) for name, t in _tensors(value)}
    if isinstance(value, list | tuple):
        return [identity(v) for v in value]
    if isinstance(value, dict):
        return {str(k): identity(v) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{f.name: identity(getattr(value, f.name)) for f in fields(value)}}
    return None


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What the author of a module put into it, without torch's own bookkeeping."""
    return {key: value for key, value in vars(module).items() if key == "training" or key not in _BOOKKEEPING}


def digest(value: Any) -> str:
    """Of anything JSON-able."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
