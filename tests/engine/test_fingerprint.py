"""What a code fingerprint sees and what it does not."""

import sys
import textwrap

import pytest

from pipelines.planning.fingerprint import fingerprint, forget
from stages import registry


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes modules of a package `proj` and gives the fingerprint of `proj.main:Stage`."""
    package = tmp_path / "proj"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**modules: str) -> dict[str, str]:
        for name, text in {"__init__": "", **modules}.items():
            (package / f"{name}.py").write_text(textwrap.dedent(text))
        forget()
        return fingerprint("proj.main:Stage")

    yield write
    forget()
    assert not any(name.startswith("proj") for name in sys.modules), "nothing is imported to be fingerprinted"


MAIN = """
import torch
from proj import deep
from proj.helper import helper, LIMIT as MOST
from proj.helper import unused

class Stage:
    def run(self):
        from proj.lazy import late
        return helper(MOST) + late() + deep.a.b(torch.ones(1))
"""
HELPER = """
LIMIT = 3

def helper(x: int) -> int:
    '''Doc.'''
    return inner(x)

def inner(x):
    return x + 1

def unused():
    return 0
"""
MODULES = {
    "main": MAIN,
    "helper": HELPER,
    "lazy": "def late():\n    return 1\n",
    "deep": "class a:\n    @staticmethod\n    def b(x):\n        return x\n\n\ndef never():\n    return 0\n",
}


def test_follows_calls_constants_lazy_imports_and_attributes(project):
    reached = set(project(**MODULES))
    assert {
        "proj.main:Stage",
        "proj.helper:helper",
        "proj.helper:inner",
        "proj.helper:LIMIT",
        "proj.lazy:late",
    } <= reached
    assert "proj.deep:a" in reached
    assert not reached & {"proj.helper:unused", "proj.deep:never"}
    assert not any("torch" in name for name in reached), "installed libraries are evidence"


@pytest.mark.parametrize(
    ("module", "old", "new", "same"),
    [
        ("helper", "return x + 1", "return x + 2", False),
        ("helper", "LIMIT = 3", "LIMIT = 4", False),
        ("lazy", "return 1", "return 2", False),
        ("deep", "return x\n", "return -x\n", False),
        ("main", "late() +", "late() -", False),
        ("helper", "'''Doc.'''", "'''Other.'''  # and a comment", True),
        ("helper", "x: int) -> int", "x: 'float')", True),
        ("helper", "return inner(x)", "return inner(\n        x\n    )", True),
        ("helper", "return 0", "return 1", True),
        ("deep", "return 0", "return 1", True),
        ("main", "from proj.helper import unused\n", "", True),
    ],
)
def test_what_changes_it(project, module, old, new, same):
    before = project(**MODULES)
    assert old in MODULES[module]
    after = project(**{**MODULES, module: MODULES[module].replace(old, new, 1)})
    assert (before == after) == same


def test_what_cannot_be_followed_counts_whole(project):
    passed_around = {"main": "from proj import helper\n\nclass Stage:\n    mod = helper\n", "helper": HELPER}
    assert "proj.helper:unused" in project(**passed_around)
    starred = {"main": "from proj.helper import *\n\nclass Stage:\n    def run(self):\n        return helper(1)\n"}
    assert project(**starred, helper=HELPER) is not None


def test_statements_that_run_on_import_count(project):
    before = project(
        main="from proj.helper import helper\n\nclass Stage:\n    x = helper\n", helper=HELPER + "\nprint(1)\n"
    )
    after = project(
        main="from proj.helper import helper\n\nclass Stage:\n    x = helper\n", helper=HELPER + "\nprint(2)\n"
    )
    assert before != after


def test_a_base_class_and_a_relative_import_are_followed(project):
    reached = project(main="from .base import Base\n\nclass Stage(Base):\n    pass\n", base="class Base:\n    x = 1\n")
    assert set(reached) == {"proj.main:Stage", "proj.base:Base"}


@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_has_a_fingerprint_that_reaches_its_work(method):
    reached = fingerprint(registry.target(method))
    assert registry.target(method) in reached
    assert len({name.partition(":")[0] for name in reached}) > 2, "the work lives in modules that run() imports"
    assert not any(name.startswith("pipelines.") for name in reached)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("torch.nn.functional.silu = helper", "torch.nn.functional.silu = None"),
        ('os.environ["MODE"] = "a"', 'os.environ["MODE"] = "b"'),
        ("helper = torch.compile(helper)", "helper = torch.no_grad(helper)"),
        ("vars(torch)['x'] = 1", "vars(torch)['x'] = 2"),
        ("LIMIT, torch.x = 3, 4", "LIMIT, torch.x = 3, 5"),
    ],
)
def test_an_assignment_to_what_is_not_its_own_is_something_a_module_does(project, before, after):
    main = "import os\nimport torch\nfrom proj.helper import helper\n\n{}\n\nclass Stage:\n    x = helper\n"
    reached = project(main=main.format(before), helper=HELPER)
    assert {"proj.main:(module)", "proj.helper:inner"} <= set(reached)
    assert reached != project(main=main.format(after), helper=HELPER)


def test_what_every_package_above_a_module_does_counts(project, tmp_path):
    inner = tmp_path / "proj" / "sub" / "deeper"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("")
    (inner / "leaf.py").write_text("def f():\n    return 1\n")
    main = "class Stage:\n    def run(self):\n        from proj.sub.deeper.leaf import f\n        return f()\n"
    above = tmp_path / "proj" / "sub" / "__init__.py"
    before = project(main=main)
    above.write_text("import os\nos.environ['MODE'] = 'a'\n")
    assert before != project(main=main), "`deeper` has no file of its own, and `sub` is imported first"
