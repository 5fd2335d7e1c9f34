"""The commands as they are typed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli.app import app
from stages.errors import UserError
from tests.housekeeping.conftest import Shop


def regraft(shop: Shop, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--store", shop.store.location], catch_exceptions=True)


def test_gc_tells_first_and_removes_when_told(shop: Shop) -> None:
    told = regraft(shop, "gc", "--keep-last", "1").stdout
    first, *_, last = shop.results
    assert f": run {last.run} is one of the last of shop" in " ".join(told.split())
    assert "goes, " in told
    assert first.run in told
    assert "would remove 4 artifacts" in told
    assert "nothing has been removed; do it with: regraft " in told
    items = json.loads(regraft(shop, "gc", "--keep-last", "1", "--json").stdout)["items"]
    assert [item["goes"] for item in items] == [True] * 4 + [False] * 3
    assert "removed 4 artifacts" in regraft(shop, "gc", "--keep-last", "1", "--yes").stdout
    assert "nothing to remove" in regraft(shop, "gc", "--keep-last", "1").stdout


def test_lineage_is_a_tree_that_tells_a_step_once(shop: Shop) -> None:
    told = regraft(shop, "lineage", "score").stdout
    assert told.count("base.model") == 1
    assert "size 40" in told
    assert "size 10" in told
    steps = json.loads(regraft(shop, "lineage", "score", "--json").stdout)["steps"]
    assert [step["stage"] for step in steps] == ["score", "child", "base"]
    assert steps[1]["inputs"][0] | {"digest": ""} == {
        "name": "teacher",
        "digest": "",
        "key": steps[2]["key"],
        "output": "model",
    }


def test_tag_and_export(shop: Shop, tmp_path) -> None:
    assert "best stands for the artifact" in regraft(shop, "tag", "child", "best").stdout
    assert "best" in regraft(shop, "tag").stdout
    regraft(shop, "export", "best", str(tmp_path / "new"))
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"size": 40}
    assert "no longer stands for" in regraft(shop, "tag", "best", "--remove").stdout


@pytest.mark.parametrize(
    "arguments", [("gc", "--older-than", "soon"), ("tag", "child"), ("tag", "--remove"), ("lineage", "nothing")]
)
def test_bad_input_is_a_user_s_error(shop: Shop, arguments: tuple[str, ...]) -> None:
    assert isinstance(regraft(shop, *arguments).exception, UserError)
