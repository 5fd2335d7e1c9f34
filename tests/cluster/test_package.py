"""The code that goes along: the same zip for the same files, only what is wanted, and never too much."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from clusters import package
from clusters.package import PackageError, collect


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with code, a .gitignore, and things that nobody wants to send."""
    for name, text in {
        "mine.py": "x = 1",
        "sub/deep.py": "y = 2",
        "notes.log": "secret",
        "sub/data/big.bin": "0" * 1000,
        ".regraft/artifacts/a": "a",
        ".venv/lib/site.py": "s",
        "__pycache__/mine.pyc": "c",
        ".git-like": "kept",
    }.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "project" / ".gitignore").write_text("*.log\ndata/\n")
    return tmp_path / "project"


WANTED = {".git-like", ".gitignore", "mine.py", "sub/deep.py"}


@pytest.mark.parametrize("repository", [False, True])
def test_only_what_git_would_not_ignore(project: Path, repository: bool):
    if repository:
        subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    assert set(collect(project, {}, with_regraft=False).files) == WANTED


def test_without_git_the_usual_clutter_stays(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "_git", lambda _: None)
    assert set(collect(project, {}, with_regraft=False).files) == WANTED | {"notes.log", "sub/data/big.bin"}


def test_the_same_files_make_the_same_bytes(project: Path, tmp_path: Path):
    first = collect(project, {}, with_regraft=False)
    first.write(tmp_path / "1.zip")
    digest = first.digest
    (project / "mine.py").touch()
    (project / "notes.log").write_text("other")
    second = collect(project, {}, with_regraft=False)
    second.write(tmp_path / "2.zip")
    assert second.digest == digest
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    assert set(zipfile.ZipFile(tmp_path / "1.zip").namelist()) == WANTED
    (project / "mine.py").write_text("x = 2")
    assert collect(project, {}, with_regraft=False).digest != digest


def test_regraft_goes_along_with_all_it_needs(project: Path):
    needed = {"pipelines/running/run.py", "pipelines/report/report.html.j2", "clusters/local.yaml", "mine.py"}
    assert needed <= set(collect(project, {}, with_regraft=True).files)


def test_too_much_is_refused_and_the_biggest_are_named(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "LIMIT_BYTES", 1 << 20)
    (project / "sub" / "weights.bin").write_bytes(bytes(3 << 20))
    with pytest.raises(PackageError) as caught:
        collect(project, {}, with_regraft=False)
    assert "3 MiB in all, at most 1 MiB" in str(caught.value)
    assert "3.0 MiB  sub/weights.bin" in str(caught.value)
    assert ".gitignore" in caught.value.fix


def test_nothing_may_stand_in_for_regraft(project: Path):
    (project / "stages").mkdir()
    (project / "stages" / "stage.py").write_text("mine")
    with pytest.raises(PackageError, match=r"would take the place of regraft's own stages/stage\.py"):
        collect(project, {}, with_regraft=True)
    assert "stages/stage.py" in collect(project, {}, with_regraft=False).files
