"""Which artifact a text means, and what is told when it means none."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from pipelines.cli.history import find_run
from pipelines.cli.housekeeping import give_tag, show_tags, take_tag
from pipelines.housekeeping.ancestry import Ancestry, trace
from pipelines.housekeeping.card import dataset_card
from pipelines.housekeeping.files import StoreFiles
from pipelines.housekeeping.reference import find_artifact
from pipelines.json_text import json_text
from pipelines.remote.locate import locate
from stages.errors import UserError
from tests.housekeeping.conftest import Shop


def test_every_form_finds_the_artifact(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    first, _, third = shop.results
    give_tag(shop.store, f"{first.run}:child", "best")
    give_tag(shop.store, first.run, "start")
    old, new = first.manifests["child"], third.manifests["child"]
    forms = {
        "child": new,
        "child.model": new,
        "latest:child": new,
        f"{third.run}:child": new,
        f"{first.run}:child.model": old,
        f"{first.run[:-1]}:child": old,
        "start:child": old,
        "best": old,
        old.key[:10]: old,
        old.outputs["model"].digest[:12]: old,
    }
    found = {text: find_artifact(shop.catalogue(), text) for text in forms}
    assert {text: (made.manifest.key, made.output) for text, made in found.items()} == {
        text: (manifest.key, "model") for text, manifest in forms.items()
    }
    assert find_artifact(shop.catalogue(), "child.report").output == "report"


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("chidl", "no artifact 'chidl'", "did you mean 'child'"),
        ("latest:chidl", "has no stage 'chidl'", "did you mean 'child'"),
        ("child.modle", "has no output 'modle'", "did you mean 'model'"),
        ("2025:child", "no run '2025'", "valid: 20"),
        ("20:child", "3 runs begin with '20'", "valid: 20"),
        ("start", "is a tag of a run", "name one of its stages"),
        ("", "no artifact ''", "valid: "),
        ("0000000", "no artifact '0000000'", "valid: "),
    ],
)
def test_what_is_not_there(shop: Shop, text: str, message: str, fix: str) -> None:
    give_tag(shop.store, shop.results[0].run, "start")
    with pytest.raises(UserError, match=message) as caught:
        find_artifact(shop.catalogue(), text)
    assert fix in caught.value.fix


def test_tags_are_given_moved_listed_and_taken(any_shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, _ = any_shop.results
    give_tag(any_shop.store, first.run, "kept")
    give_tag(any_shop.store, second.run, "kept")
    assert f"no longer for {first.run}" in capsys.readouterr().out
    show_tags(any_shop.store, as_json=False)
    assert second.run in capsys.readouterr().out
    take_tag(any_shop.store, "kept")
    show_tags(any_shop.store, as_json=True)
    assert capsys.readouterr().out.endswith("[]\n")
    with pytest.raises(UserError, match="no tag 'kept'"):
        take_tag(any_shop.store, "kept")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "x" * 65, "a b"])
def test_bad_tags_are_refused(shop: Shop, name: str) -> None:
    with pytest.raises(UserError, match="cannot be a tag"):
        give_tag(shop.store, "latest", name)


def test_a_lineage_is_json_though_metrics_are_not_numbers(shop: Shop) -> None:
    found = trace(shop.catalogue(), find_artifact(shop.catalogue(), "score"))
    step = replace(found.step, metrics={"loss": math.nan, "most": math.inf})
    text = json_text(replace(found, steps={**found.steps, found.key: step}).to_json())
    json.loads(text, parse_constant=lambda text: pytest.fail(text))
    assert str(Ancestry.from_json(json.loads(text)).step.metrics) == "{'loss': nan, 'most': inf}"


def test_a_card_names_a_pinned_version_whole_and_a_digest_shortly(shop: Shop) -> None:
    found = trace(shop.catalogue(), find_artifact(shop.catalogue(), "base"))
    sources = {"model": "hub:org/name@release-2", "file": "ab" * 32}
    step = replace(found.step, sources=sources, declared={})
    card = dataset_card("x", replace(found, steps={found.key: step}), {}, [])
    assert "| hub:org/name@release-2, abababab |" in card


def test_an_accepted_drift_is_part_of_the_lineage(any_shop: Shop) -> None:
    child = any_shop.results[2].manifests["child"]
    for when, reason in ((2.0, "only a log line"), (1.0, "older")):
        record = {"of": child.key, "who": "Ada", "when": when, "reason": reason, "version": 1}
        StoreFiles(any_shop.store).write(f"accepted/m/{when}.json", json.dumps(record).encode())
    catalogue = any_shop.catalogue()
    steps = trace(catalogue, find_artifact(catalogue, "score")).steps.values()
    assert {step.stage: step.drift for step in steps} == {
        "score": {},
        "child": {"who": "Ada", "when": 2.0, "reason": "only a log line"},
        "base": {},
    }


def test_every_command_knows_a_run_by_its_tag(any_shop: Shop) -> None:
    store, runs = any_shop.store, [result.run for result in any_shop.results]
    give_tag(store, runs[0], "good")
    give_tag(store, f"{runs[1]}:child", "model")
    assert find_run(store, "good") == runs[0]
    assert find_run(store, None) == find_run(store, "latest") == runs[2]
    assert find_run(store, runs[1][:-1]) == runs[1]
    assert locate(store.location, "good")[1] == runs[0]
    for text in ("model", ""):
        with pytest.raises(UserError, match="no run"):
            find_run(store, text)
