"""Specs as plain data: what is written is read again, and nothing else is."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfields.errors import FileError, InputError, MedfieldsError, UnknownName
from medfields.fields import (
    MLP,
    SPECS,
    Finer,
    Fourier,
    MultiHead,
    NeRFEncoding,
    Siren,
    Spec,
    from_json,
    parameter_count,
    spec,
    to_json,
    width_for,
)
from medfields.space import Box

BOX = Box((0, 0, 0), (10, 10, 10))


def test_json_is_plain_and_nested():
    net = MLP(encoding=Fourier("positional", 12, 2.0), skips=(1, 3))
    text = json.dumps(to_json(net))
    assert json.loads(text) == {"kind": "MLP", "encoding": {"kind": "Fourier", "frequencies": "positional", "size": 12, "sigma": 2.0},
                                "width": 256, "depth": 4, "activation": "relu", "skips": [1, 3], "split": 0}
    assert from_json(json.loads(text)) == net


@pytest.mark.parametrize(("data", "error"), [
    ({"kind": "Sirne"}, UnknownName),
    ({"kind": "os.system"}, UnknownName),
    ({"kind": ["MLP"]}, FileError),
    ({"width": 3}, FileError),
    ([], FileError),
    (None, FileError),
    ({"kind": "MLP", "breadth": 3}, FileError),
    ({"kind": "BSpline", "degree": 1}, FileError),
    ({"kind": "MLP", "width": 1 << 30}, FileError),
    ({"kind": "MLP", "width": -1}, FileError),
    ({"kind": "MLP", "width": "256"}, FileError),
    ({"kind": "MLP", "width": True}, FileError),
    ({"kind": "MLP", "width": 2.0}, FileError),
    ({"kind": "MLP", "width": None}, FileError),
    ({"kind": "MLP", "activation": "gelu"}, FileError),
    ({"kind": "MLP", "activation": ["relu"]}, FileError),
    ({"kind": "MLP", "skips": 3}, FileError),
    ({"kind": "MLP", "skips": [9]}, FileError),
    ({"kind": "MLP", "skips": ["1"]}, FileError),
    ({"kind": "MLP", "encoding": 3}, FileError),
    ({"kind": "MLP", "encoding": {"kind": "nothing"}}, UnknownName),
    ({"kind": "Siren", "omega": float("nan")}, FileError),
    ({"kind": "Siren", "omega": float("inf")}, FileError),
    ({"kind": "Siren", "omega": 10**400}, FileError),
    ({"kind": "Siren", "omega": True}, FileError),
    ({"kind": "Finer", "bias": "x"}, FileError),
    ({"kind": "MultiHead", "cells": [1 << 20, 1 << 20, 1]}, FileError),
    ({"kind": "MultiHead", "cells": []}, FileError),
], ids=str)
def test_what_a_hostile_file_gets(data, error):
    with pytest.raises(error):
        from_json(data)


def test_nesting_is_bounded():
    data: dict = {"kind": "Identity"}
    for _ in range(5000):
        data = {"kind": "MLP", "encoding": data}
    with pytest.raises(FileError, match="nested"):
        from_json(data)


def test_an_integer_serves_where_a_float_is_meant():
    made = from_json({"kind": "Siren", "omega": 20})
    assert made == Siren(omega=20.0) and isinstance(made.omega, float)


def test_optional_fields():
    assert from_json(to_json(Finer(bias=None))).bias is None
    assert from_json(to_json(Finer(bias=2.0))).bias == 2.0


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(SPECS)),
                      lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(st.sampled_from(["kind", "width", "encoding", "cells", "size"]), inner), max_leaves=8)


@settings(deadline=None, max_examples=200)
@given(kind=st.sampled_from(sorted(SPECS)), data=st.data())
def test_only_our_errors_come_out(kind, data):
    names = [f.name for f in dataclasses.fields(SPECS[kind])]
    header = {"kind": kind, **({n: data.draw(values) for n in data.draw(st.sets(st.sampled_from(names)))} if names else {})}
    try:
        made = from_json(header)
    except MedfieldsError:
        return
    assert from_json(to_json(made)) == made


@pytest.mark.parametrize("make", [
    lambda: MLP(width=0), lambda: MLP(depth=65), lambda: MLP(skips=(0,)), lambda: MLP(skips=(1, 1)), lambda: Siren(omega=0.0),
    lambda: Siren(omega=float("nan")), lambda: Fourier(size=0), lambda: NeRFEncoding(octaves=99), lambda: MultiHead(cells=(0, 1, 1)),
    lambda: MultiHead(alpha=0), lambda: MLP(encoding=Siren()).build(BOX, 1), lambda: MultiHead(cells=(2, 2)).build(BOX, 1),
])
def test_sizes_nobody_can_mean(make):
    with pytest.raises(InputError):
        make()


def test_specs_are_values():
    assert Siren() == Siren() and hash(Siren()) == hash(Siren()) and Siren() != Siren(width=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Siren().width = 3


def test_registering_needs_no_table_and_keeps_names_unique():
    @spec
    class Passing(Spec):
        power: int = 2

        def build(self, box, channels):
            raise NotImplementedError

    try:
        assert from_json({"kind": "Passing", "power": 3}) == Passing(3)
        with pytest.raises(InputError, match="two specs"):
            spec(type("Siren", (Spec,), {"__module__": "elsewhere", "build": Passing.build}))
        assert SPECS["Siren"] is Siren
    finally:
        del SPECS["Passing"]


def test_the_name_of_the_spec_is_not_a_field():
    with pytest.raises(InputError, match="kind"):
        spec(type("Bad", (Spec,), {"__module__": __name__, "__annotations__": {"kind": str}, "build": lambda *_: None}))
    assert "Bad" not in SPECS


def test_equal_parameters():
    reference = parameter_count(MLP(width=256, depth=4), BOX)
    assert reference == 4 * 256 + 3 * 257 * 256 + 257
    for small in (Siren(depth=5), MultiHead(cells=(4, 4, 4), alpha=32), MLP(encoding=Fourier(size=64))):
        fitted = width_for(small, reference, BOX)
        assert parameter_count(fitted, BOX) <= reference < parameter_count(dataclasses.replace(fitted, width=fitted.width + 1), BOX)
    with pytest.raises(InputError, match="does not fit"):
        width_for(Siren(), 3, BOX)
