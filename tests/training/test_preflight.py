from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest

from stages.errors import UserError
from stages.training.preflight import REQUIRED, require_training_tools


@pytest.mark.parametrize("package", REQUIRED)
def test_this_machine_can_train_as_long_as_no_newer_package_is_asked_for(package, monkeypatch):
    """What is really installed is what is compared, for each package: the same version passes, the next does not."""
    installed = metadata.version(package)
    major, minor = (int(part) for part in installed.split(".")[:2])
    monkeypatch.setitem(REQUIRED, package, (major, minor))
    require_training_tools()
    monkeypatch.setitem(REQUIRED, package, (major, minor + 1))
    with pytest.raises(UserError, match=rf"{package} >= {major}\.{minor + 1}, found {re.escape(installed)}"):
        require_training_tools()


def test_a_missing_package_is_named_with_its_fix(monkeypatch):
    def version(package: str) -> str:
        if package == "deepspeed":
            raise metadata.PackageNotFoundError(package)
        return "99.0"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError, match=r"deepspeed >= 0\.19.*not installed[\s\S]*pip install 'deepspeed>=0\.19'"):
        require_training_tools()


def test_an_old_package_is_refused_with_both_versions(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda package: "2.5.1+cpu" if package == "torch" else "99.0")
    with pytest.raises(UserError, match=r"torch >= 2\.6, found 2\.5\.1"):
        require_training_tools()


def test_planning_imports_nothing_heavy():
    code = (
        "import sys, stages.distill.logits, stages.training.settings, stages.training.preflight;"
        "heavy = {'torch', 'deepspeed', 'ray', 'transformers', 'numpy', 'datasets'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
