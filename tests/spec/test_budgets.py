"""One pipeline at several sizes: a budget is many --set at once."""

from pathlib import Path

import pytest

from pipelines.cli.options import SHIPPED, load_pipeline
from pipelines.spec.budgets import with_budgets
from pipelines.spec.problems import SpecError
from stages.errors import UserError

PIPELINE = """\
name: sized
params: {text: abc, times: 2, scale: 1.0}
stages:
  a:
    uses: tests.toy:Write
    with: {text: "${params.text}", repeat: "${params.times}", scale: "${params.scale}"}
"""
LARGE = """\
# for the cluster
params.text: "${params.times} of them: yes"
params.times: 700
params.scale: 3e-4
a.resources: {cpus: 2, gpus: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "budgets").mkdir()
    (tmp_path / "budgets" / "sized.large.yaml").write_text(LARGE)
    (tmp_path / "sized.yaml").write_text(PIPELINE)
    return tmp_path / "sized.yaml"


def test_a_budget_is_what_its_lines_would_set(file: Path):
    by_hand = ["params.times=700", "params.scale=3e-4", "a.resources={cpus: 2, gpus: 1}"]
    text = "params.text=${params.times} of them: yes"
    (a,) = load_pipeline(str(file), ["budget=large", "params.text=x"]).stages.values()
    (same,) = load_pipeline(str(file), [*by_hand, "params.text=x"]).stages.values()
    assert (a.params, a.resources) == (same.params, same.resources)
    assert a.params.repeat == 700
    assert load_pipeline(str(file), ["budget=large", "params.text=x"]).asked == ("budget=large", "params.text=x")
    assert with_budgets(file, ["budget=large"])[0] == f"params.text={chr(34)}{text.partition('=')[2]}{chr(34)}"


def test_what_comes_later_counts(file: Path):
    for overrides, times in ((["budget=large", "params.times=3"], 3), (["params.times=3", "budget=large"], 700)):
        (a,) = load_pipeline(str(file), [*overrides, "params.text=x"]).stages.values()
        assert a.params.repeat == times


def test_what_is_no_budget_is_refused(file: Path):
    with pytest.raises(UserError, match=r"sized.yaml has no budget 'larg'") as caught:
        load_pipeline(str(file), ["budget=larg"])
    assert "did you mean 'large'?" in caught.value.fix
    for text, message in (("- 1", "a mapping of names"), ("a: {", "f.yaml|expected|flow")):
        (file.parent / "budgets" / "sized.bad.yaml").write_text(text)
        with pytest.raises(SpecError, match=message):
            load_pipeline(str(file), ["budget=bad"])
    (file.parent / "budgets" / "sized.bad.yaml").write_text("params.tms: 2")
    with pytest.raises(UserError, match="the pipeline has no parameter 'tms'"):
        load_pipeline(str(file), ["budget=bad"])


@pytest.mark.parametrize("budget", sorted((SHIPPED / "budgets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_budget_fits_its_pipeline(budget: Path):
    pipeline, _, name = budget.stem.partition(".")
    assert load_pipeline(pipeline, [f"budget={name}"]).stages
