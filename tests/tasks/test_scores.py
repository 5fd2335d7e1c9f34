"""Figures from the harness's results: groups stand for their members, filters are told apart, chance is right."""

from __future__ import annotations

from typing import Any

import pytest

from stages.errors import UserError
from stages.evaluate.tasks_names import names_in
from stages.evaluate.tasks_scores import headline, scores


def results(values: dict[str, dict[str, Any]], groups: dict[str, list[str]] | None = None) -> dict[str, Any]:
    empty: dict[str, Any] = {name: {} for name in values}
    return {
        "results": values,
        "group_subtasks": groups or {},
        "higher_is_better": empty,
        "n-samples": empty,
        "n-shot": {},
        "versions": {},
        "configs": {},
        "samples": {},
    }


def test_a_group_stands_for_its_members():
    found = results(
        {
            "all": {"acc,none": 0.5, "acc_stderr,none": 0.1},
            "some": {"acc,none": 0.7},
            "one": {"acc,none": 0.2},
            "other": {"acc,none": 1.0},
        },
        {"all": ["some"], "some": ["one"]},
    )
    assert headline(found, scores(found)) == {"all_acc": 0.5, "other_acc": 1.0, "accuracy_mean": 0.75}


def test_a_group_without_figures_shows_its_members():
    found = results({"all": {"alias": "all"}, "one": {"acc,none": 0.25}}, {"all": ["one"]})
    assert headline(found, scores(found)) == {"one_acc": 0.25, "accuracy_mean": 0.25}


def test_filters_make_names_of_their_own_and_missing_errors_are_none():
    found = results({"gsm8k": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": "N/A"}})
    assert headline(found, scores(found)) == {"gsm8k_exact_match_strict_match": 0.1}
    assert scores(found)["gsm8k"]["metrics"]["exact_match_strict-match"]["stderr"] is None


def test_no_figures_is_an_error():
    found = results({"nothing": {"alias": "nothing"}})
    with pytest.raises(UserError, match="the tasks nothing gave no figures"):
        headline(found, scores(found))


def test_mutual_information_asks_twice():
    found = results({"task": {"acc,none": 1.0}})
    found["configs"] = {"task": {"output_type": "multiple_choice", "metric_list": [{"metric": "acc_mutual_info"}]}}
    found["samples"] = {"task": [{"arguments": [0] * 8, "target": 1}, {"arguments": [0] * 4, "target": 1}]}
    assert scores(found)["task"]["chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert scores(found)["task"]["most_frequent_choice"] == 1.0


def test_names_are_found_in_every_form(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "_template").write_text("tag: [first, 'second']  # of them\n")
    (tmp_path / "one.yaml").write_text(
        '"task": "third"\ngroup:\n  - fourth\n  - task: fifth\ntag:\n  [\n    sixth,\n  ]\n'
    )
    assert {"first", "second", "third", "fourth", "fifth", "sixth"} <= names_in(tmp_path)
