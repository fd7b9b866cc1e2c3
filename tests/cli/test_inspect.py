"""list, show, cite, doctor."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from medfields import plugins
from medfields.cli.inspect import bibtex
from medfields.fields import BSpline, Field
from medfields.io import write_field
from medfields.space import Grid


def test_list_has_one_line_for_each_method(medfields) -> None:
    lines = medfields("list").out.splitlines()
    tasks = [line for line in lines if not line.startswith(" ")]
    assert tasks == sorted(plugins.DEFAULT)
    assert sorted(line[3:].split()[0] for line in lines if line not in tasks) == sorted(plugins.entries())
    first, end = lines.index("register"), lines.index("superres")
    assert medfields("list", "--task", "register").out.splitlines() == lines[first:end]


def test_list_marks_the_default(medfields) -> None:
    starred = [line.split()[1] for line in medfields("list").out.splitlines() if line.startswith(" *")]
    assert starred == [plugins.default(task) for task in sorted(plugins.DEFAULT)]


def test_list_of_an_unknown_task(medfields) -> None:
    said = medfields("list", "--task", "superes")
    assert said.code == 9 and "did you mean 'superres'" in said.err


def test_show_prints_card_and_source(medfields) -> None:
    entry = plugins.entries()["srr-cg"]
    said = medfields("show", "srr-cg").out
    assert entry.title in said and entry.paper in said and "medfields superres --method srr-cg --help" in said
    assert medfields("show", "srr-cg", "--source").out == entry.path.read_text()


def test_cite_reads_what_the_card_says(medfields, tmp_path: Path) -> None:
    said = medfields("cite", "srr-cg").out
    assert re.match(r"@misc\{srr-cg,\n", said) and "doi = {10.1109/TMI.2010.2051680}" in said and "year = {2010}" in said
    assert "author = {Ali Gholipour and Judy A. Estroff and Simon K. Warfield}" in said
    assert "title = {Robust Super-Resolution Volume Reconstruction From Slice Acquisitions: Application to Fetal Brain MRI}" in said
    folder = tmp_path / "some.run"
    folder.mkdir()
    (folder / "config.toml").write_text('method = "srr-cg"\n')
    assert medfields("cite", folder).out == said
    (folder / "config.toml").write_text("method = ")
    assert medfields("cite", folder).code == 4
    assert "eprint = {2006.09661}" in medfields("cite", "siren").out
    assert not {"doi", "eprint"} & set(medfields("cite", "own-slices").out.split())  # ours: no other paper's number


@pytest.mark.parametrize("name", plugins.entries())
def test_every_paper_has_authors_and_a_title(name: str) -> None:
    said = bibtex(plugins.find(name))
    assert all(f"  {key} = {{" in said for key in ("author", "title", "year"))


def test_a_paper_that_is_only_a_number() -> None:
    entry = replace(plugins.entries()["siren"], facts={"paper": "arXiv:2006.09661"})
    assert "eprint = {2006.09661}" in bibtex(entry) and "year" not in bibtex(entry) and "author" not in bibtex(entry)


def test_cite_reads_the_method_from_a_field(medfields, tmp_path: Path) -> None:
    grid = Grid.from_spacing((2, 2, 2), 1.0)
    field = Field(BSpline.on(grid), grid.box())
    write_field(field, tmp_path / "iso.field", about={"method": "srr-cg"})
    assert medfields("cite", "iso.field").out == medfields("cite", "srr-cg").out
    write_field(field, tmp_path / "iso.field")
    said = medfields("cite", "iso.field")
    assert said.code == 4 and "does not say" in said.err


def test_doctor_reports_the_parts(medfields) -> None:
    said = medfields("doctor")
    assert said.code == 0
    assert all(word in said.out for word in ("medfields", "python", "torch", "OMP_WAIT_POLICY", "Numba", "precision", "SimpleITK", "disk"))
