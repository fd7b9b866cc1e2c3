"""new writes a file that runs and passes; check says what is wrong with one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("like", [(), ("--like", "mlp"), ("--like", "srr-cg"), ("--task", "ct"), ("--task", "ct", "--like", "mlp")],
                         ids=["template", "mlp", "a method", "ct", "ct mlp"])
def test_new_file_passes_its_check(medfields, tmp_path: Path, like: tuple[str, ...]) -> None:
    said = medfields("new", "my-idea", *like)
    assert said.code == 0 and (tmp_path / "my_idea.py").is_file() and "medfields check ./my_idea.py" in said.out
    said = medfields("check", "./my_idea.py")
    assert said.code == 0, said.out
    assert "FAILED" not in said.out and "all checks passed" in said.out


def test_new_refuses_bad_names_and_existing_files(medfields, tmp_path: Path) -> None:
    assert medfields("new", "3d").code == 2
    assert medfields("new", "class").code == 2
    (tmp_path / "mine.py").write_text("precious")
    said = medfields("new", "mine")
    assert said.code == 5 and (tmp_path / "mine.py").read_text() == "precious"
    assert medfields("new", "other", "--like", "sirren").code == 9
    assert medfields("new", "other", "--folder", "nowhere").code == 5
    assert medfields("new", "other", "--task", "cta").code == 9
    said = medfields("new", "other", "--task", "ct", "--like", "srr-cg")
    assert said.code == 2 and "for superres, not for ct" in said.err


def test_new_says_how_to_run_it(medfields, tmp_path: Path) -> None:
    assert "medfields ct projections.h5 -o volume.nii.gz --method ./mine.py" in medfields("new", "mine", "--task", "ct").out
    assert "medfields superres a.nii.gz b.nii.gz -o iso.nii.gz --method ./yours.py" in medfields("new", "yours").out


@pytest.mark.parametrize("code", ["import no_such_package", "def ("])
def test_a_file_that_cannot_be_imported_is_one_line(medfields, tmp_path: Path, code: str) -> None:
    medfields("new", "my-idea")
    file = tmp_path / "my_idea.py"
    file.write_text(f"{file.read_text()}\n{code}\n")
    line = len(file.read_text().splitlines())
    for words in (("check", "./my_idea.py"), ("superres", "a.nii.gz", "-o", "iso.nii.gz", "--method", "./my_idea.py")):
        said = medfields(*words)
        assert said.code == 4 and said.err.startswith(f"medfields: error: {file}, line {line}: ") and "Error: " in said.err
        assert said.err.endswith("\nhint: --debug shows the traceback\n") and said.err.count("\n") == 2


def test_check_goes_on_after_an_error_in_the_method(medfields, tmp_path: Path) -> None:
    medfields("new", "my-idea")
    file = tmp_path / "my_idea.py"
    lines = file.read_text().splitlines()
    line = next(n for n, text in enumerate(lines) if text.startswith("        offset, scale ="))
    file.write_text("\n".join([*lines[:line], "        no_such_name()", *lines[line:]]))
    said = medfields("check", "./my_idea.py")
    assert said.code == 1 and f"my_idea.py, line {line + 1}: NameError: name 'no_such_name' is not defined" in said.out
    assert "ok      card" in said.out and "checks failed" in said.out


def test_check_names_what_is_broken(medfields, tmp_path: Path) -> None:
    medfields("new", "my-idea")
    file = tmp_path / "my_idea.py"
    start = "        offset, scale ="
    text = file.read_text().replace("Use when:", "Some day:")
    file.write_text(text.replace(start, f"        __import__('torch').seed()\n{start}"))
    said = medfields("check", "./my_idea.py")
    assert said.code == 1 and "ok      hyper parameters" in said.out
    assert "FAILED  card: the card lacks Use when:" in said.out
    assert "FAILED  same seed same bytes: two runs" in said.out
