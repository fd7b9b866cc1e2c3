"""`.field` files: what goes in comes out to the bit, old files stay readable, and a hostile header costs nothing but an error."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from io_samples import oblique
from medfields.errors import FileError, GeometryError, InputError, MedfieldsError, UnknownName
from medfields.fields import SPECS, Field, Siren, Spec
from medfields.io import read_field, read_field_header, read_volume, write_field
from medfields.space import Box

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.field"))
EYE = np.eye(4).ravel().tolist()
BOX = Box((-40, -30, -20), (20, 30, 50))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file: two channels, a grid, provenance."""
    field = Field(Siren(8, 2), BOX, 2, scale=torch.tensor([200.0, 3.0]), offset=torch.tensor([50.0, -1.0]), unit="HU",
                  names=("ct", "mask"), seed=1)
    field.grid = oblique(frame="1.2.3")
    write_field(field, tmp_path / "a.field", {"method": "siren", "paper": "10.1000/x"})
    return tmp_path / "a.field"


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The outer header, our header, and the tensors."""
    content = path.read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8:8 + n])
    return outer, json.loads(outer["__metadata__"]["medfields"]), content[8 + n:]


def save(path: Path, outer: Any, header: Any, tensors: bytes) -> Path:
    outer["__metadata__"] = {"medfields": header if isinstance(header, str) else json.dumps(header)}
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)
    return path


def refused(path: Path, kind: type[MedfieldsError], words: str) -> None:
    """One short line, and no memory spent."""
    tracemalloc.start()
    with pytest.raises(kind, match=words) as caught:
        read_field(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(caught.value) is kind and "\n" not in str(caught.value) and len(str(caught.value)) < 500 and peak < 5e6


def test_round_trip(path: Path) -> None:
    field = Field(Siren(8, 2), BOX, 2, scale=torch.tensor([200.0, 3.0]), offset=torch.tensor([50.0, -1.0]), seed=1)
    found = read_field(path)
    x = BOX.random(50, torch.Generator().manual_seed(0))
    assert torch.equal(found(x), field(x))
    assert (found.spec, found.box, found.unit, found.names, found.channels) == (Siren(8, 2), BOX, "HU", ("ct", "mask"), 2)
    assert found.about == {"method": "siren", "paper": "10.1000/x"}
    assert found.grid is not None and found.grid.frame == "1.2.3" and found.grid.same_as(oblique(), 1e-9)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_spec(tmp_path: Path, name: str) -> None:
    """Each registered function, in two and three dimensions; reading leaves the caller's random numbers alone."""
    built = 0
    for box in (BOX, Box((0, 1), (5, 9)), Box((*BOX.lo, 0), (*BOX.hi, 2))):
        spec = SPECS[name].example(box)
        if spec is None or not SPECS[name].__module__.startswith("medfields."):
            continue
        if hasattr(spec.build(box, 3), "n_out"):
            pytest.skip("an encoding is part of a field")
        field, x = Field(spec, box, 3), box.random(20, torch.Generator().manual_seed(0))
        with torch.no_grad():
            for p in field.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        write_field(field, tmp_path / "a.field")
        torch.manual_seed(5)
        found = read_field(tmp_path / "a.field")
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(5)))
        assert torch.equal(found(x), field(x))
        built += 1
    if not built:
        pytest.skip(f"{name} fits none of these boxes")


def test_layout_is_plain_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "np") as f:
        header = json.loads(f.metadata()["medfields"])
        assert set(f.keys()) == set(read_field(path).net.state_dict())
    assert header["format"] == "medfields/1" and header["space"] == "RAS+ mm" and header["box"]["axes"] == ["x mm", "y mm", "z mm"]
    assert header["spec"]["kind"] == "Siren" and header["channels"] == ["ct", "mask"] and header["grid"]["shape"] == [5, 4, 3]
    assert read_field_header(path) == header


def test_same_field_same_bytes(path: Path) -> None:
    write_field(read_field(path), path.with_name("b.field"))
    assert path.with_name("b.field").read_bytes() == path.read_bytes()


def test_provenance_of_any_kind(path: Path) -> None:
    field = read_field(path)
    about = {"seconds": np.float32(1.5), "loss": float("nan"), "inputs": (Path("a/b.nii.gz"), "é"), "curve": torch.arange(3), "ok": True}
    write_field(field, path, about)
    assert read_field(path).about == {**field.about, "seconds": 1.5, "loss": None, "inputs": [str(Path("a/b.nii.gz")), "é"],
                                      "curve": [0, 1, 2], "ok": True}
    with pytest.raises(InputError, match="cannot be stored"):
        write_field(field, path, {"bad": object()})
    with pytest.raises(InputError, match="too long"):
        write_field(field, path, {"bad": "x" * (1 << 24)})
    assert read_field(path).about["ok"] is True and os.listdir(path.parent) == ["a.field"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda p: p.stem)
def test_golden_files(golden: Path) -> None:
    field, expected = read_field(golden), json.loads(golden.with_suffix(".json").read_text())
    with torch.no_grad():
        values = field(torch.tensor(expected["points"]))
    torch.testing.assert_close(values, torch.tensor(expected["values"]), rtol=1e-4, atol=1e-3)
    assert (field.unit, field.names) in (("HU", ("ct", "mask")), ("mm", ("dx", "dy", "dz")))
    assert field.grid is not None and field.grid.frame == "1.2.840.7"
    assert field.about == {"method": "golden", "paper": "none"}


def test_there_are_golden_files() -> None:
    assert {f"v1-{name}" for name in ("siren", "bspline", "fourier", "hash", "multihead", "hybrid", "composed", "flow", "inplane", "tube",
                                      "agreed")} <= {p.stem for p in GOLDEN}


HEADER: list[tuple[str, Callable[[dict[str, Any]], Any], type[MedfieldsError], str]] = [
    ("newer", lambda h: h.update(format="medfields/2"), FileError, "written by a newer medfields .*upgrade"),
    ("older", lambda h: h.update(format="medfields/0"), FileError, "no format"),
    ("huge-version", lambda h: h.update(format="medfields/" + "9" * 5000), FileError, "no format"),
    ("other-format", lambda h: h.update(format="pickle/1"), FileError, "no format"),
    ("prior", lambda h: h.update(kind="prior"), FileError, "is a prior, not a field"),
    ("no-kind", lambda h: h.pop("kind"), FileError, "does not say what it holds"),
    ("no-spec", lambda h: h.pop("spec"), FileError, "spec"),
    ("unknown-spec", lambda h: h["spec"].update(kind="Sirem"), UnknownName, "did you mean 'Siren'"),
    ("module-name", lambda h: h["spec"].update(kind="os.system"), UnknownName, "no spec called"),
    ("other-width", lambda h: h["spec"].update(width=9), FileError, "by its spec"),
    ("huge-width", lambda h: h["spec"].update(width=8192, depth=64), FileError, "by its spec"),
    ("absurd-width", lambda h: h["spec"].update(width=10**12), FileError, "width"),
    ("text-width", lambda h: h["spec"].update(width="8"), FileError, "width"),
    ("extra-field", lambda h: h["spec"].update(code="x"), FileError, "unknown fields"),
    ("huge-lattice", lambda h: h.update(spec={"kind": "BSpline", "shape": [1290] * 3, "affine": EYE, "degree": 1}), FileError,
     "by its spec"),
    ("nested", lambda h: h.update(spec=_nested(100)), FileError, "nested"),
    ("no-box", lambda h: h.pop("box"), FileError, "header"),
    ("empty-box", lambda h: h.update(box={"lo": [0, 0, 0], "hi": [0, 1, 1]}), GeometryError, "positive sides"),
    ("text-box", lambda h: h.update(box={"lo": "abc", "hi": "def"}), FileError, "header"),
    ("flat-box", lambda h: h.update(box={"lo": [0, 0], "hi": [1, 1]}), FileError, "by its spec"),
    ("no-channels", lambda h: h.update(channels=[]), FileError, "header"),
    ("many-channels", lambda h: h.update(channels=["c"] * 3), FileError, "header"),
    ("scale", lambda h: h.update(scale=[1]), FileError, "header"),
    ("unit", lambda h: h.update(unit=5), FileError, "header"),
    ("space", lambda h: h.update(space="LPS"), FileError, "header"),
    ("about", lambda h: h.update(about=[]), FileError, "header"),
    ("grid-shape", lambda h: h["grid"].update(shape=[10**9] * 3), FileError, "header"),
    ("grid-flat", lambda h: h["grid"].update(affine=[[0, 0, 0, 0]] * 3 + [[0, 0, 0, 1]]), GeometryError, "singular"),
    ("grid-rows", lambda h: h["grid"].update(affine=[[1]]), FileError, "header"),
]


def _nested(n: int) -> Any:
    made: Any = {"kind": "Siren"}
    for _ in range(n):
        made = {"kind": "Hybrid", "base": made, "residual": {"kind": "Siren"}}
    return made


@pytest.mark.parametrize(("change", "kind", "words"), [pytest.param(*case[1:], id=case[0]) for case in HEADER])
def test_wrong_headers(path: Path, change: Callable[[dict[str, Any]], Any], kind: type[MedfieldsError], words: str) -> None:
    outer, header, tensors = parts(path)
    change(header)
    refused(save(path, outer, header, tensors), kind, words)


def _first(outer: dict[str, Any]) -> dict[str, Any]:
    return outer[min(set(outer) - {"__metadata__"})]


LAYOUT: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("shape", lambda o: _first(o)["shape"].append(1), "by its spec"),
    ("size", lambda o: _first(o).update(shape=[10**9, 10**9]), "cannot be"),
    ("negative", lambda o: _first(o).update(shape=[-1, -8]), "cannot be"),
    ("boolean", lambda o: _first(o).update(shape=[True]), "cannot be"),
    ("dtype", lambda o: _first(o).update(dtype="I32"), "is I32 .* but F32"),
    ("unknown-dtype", lambda o: _first(o).update(dtype="PICKLE"), "cannot be"),
    ("offsets", lambda o: _first(o).update(data_offsets=[0, 1 << 60]), "cannot be"),
    ("backwards", lambda o: _first(o).update(data_offsets=_first(o)["data_offsets"][::-1]), "cannot be"),
    ("shifted", lambda o: _first(o).update(data_offsets=[v + 4 for v in _first(o)["data_offsets"]]), "overlap|cut off"),
    ("extra-key", lambda o: _first(o).update(code="x"), "cannot be"),
    ("not-a-tensor", lambda o: o.update({"../../etc/passwd": 5}), "cannot be"),
    ("path-name", lambda o: o.update({"../../etc/passwd": o.pop(min(set(o) - {"__metadata__"}))}), "by its spec"),
    ("missing", lambda o: o.pop(min(set(o) - {"__metadata__"})), "overlap|cut off"),
    ("empty-extra", lambda o: o.update(zero={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}), "by its spec"),
]


@pytest.mark.parametrize(("change", "words"), [pytest.param(*case[1:], id=case[0]) for case in LAYOUT])
def test_wrong_layouts(path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    outer, header, tensors = parts(path)
    change(outer)
    refused(save(path, outer, header, tensors), FileError, words)


def test_overlapping_tensors(path: Path) -> None:
    outer, header, tensors = parts(path)
    names = [n for n in outer if n != "__metadata__"]
    by_size: dict[int, list[str]] = {}
    for n in names:
        by_size.setdefault(outer[n]["data_offsets"][1] - outer[n]["data_offsets"][0], []).append(n)
    a, b = next(group[:2] for group in by_size.values() if len(group) > 1)
    outer[a]["data_offsets"] = outer[b]["data_offsets"]
    refused(save(path, outer, header, tensors), FileError, "overlap")


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100000, b'{"a":' * 100000, b'{"a": ' + b"9" * 10000 + b"}",
    b'{"__metadata__": 3}', b'{"__metadata__": {"medfields": 3}}', b'{"__metadata__": {"medfields": "\\ud800"}}',
    b'{"__metadata__": {"medfields": "[]"}}', b'{"__metadata__": {"other": "x"}}'], ids=range(14))
def test_wrong_json(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.field").write_bytes(struct.pack("<Q", len(text)) + text)
    refused(tmp_path / "a.field", FileError, r"a\.field")


def test_a_name_twice(path: Path) -> None:
    content = path.read_bytes().replace(b'{"__metadata__"', b'{"x":0,"x":0,"__metadata__"')
    path.write_bytes(struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + 12) + content[8:])
    refused(path, FileError, "a name occurs twice")


@pytest.mark.parametrize("length", [0, 1, 1 << 24, 1 << 40, 2**63, 2**64 - 1])
def test_wrong_header_length(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(path, FileError, r"a\.field")


@pytest.mark.parametrize("left", [1, 7, 8, 100, -1])
def test_cut_off(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])
    refused(path, FileError, r"a\.field")


def test_too_long_empty_missing_folder_image(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, FileError, "too long")
    path.write_bytes(b"")
    refused(path, FileError, "is empty")
    refused(path.with_name("none.field"), FileError, "there is no file")
    refused(path.parent, FileError, "is a folder")


def test_a_field_is_no_image(path: Path) -> None:
    with pytest.raises(FileError, match="is a field, not an image"):
        read_volume(path)


def test_a_spec_that_is_not_a_function_of_the_box(path: Path) -> None:
    """A header whose spec refuses its box is our error, too."""
    outer, header, tensors = parts(path)
    header["spec"] = {"kind": "BSpline", "shape": [2, 2, 2], "affine": EYE, "degree": 1}
    header["box"] = {"lo": [0, 0], "hi": [1, 1]}
    with pytest.raises(InputError):
        read_field(save(path, outer, header, tensors))


def test_specs_are_registered() -> None:
    assert all(issubclass(kind, Spec) for kind in SPECS.values())
