"""Figures become ratios, JSON and tables, and nothing of them is lost or made up."""

import json
import math

from benchmarks.findings import CPU_SECONDS, SECONDS, Findings, Measure
from benchmarks.table import section, told

SPEED = Measure("tokens/s", "more")


def example() -> Findings:
    findings = Findings("Two turns", {"peer": "1.0"}, notes=["A note."], more="| a |\n|---|\n| b |")
    findings.add("read", "ours", {SECONDS: [1.0, 3.0], SPEED: [30, 10]})
    findings.add("read", "theirs", {SECONDS: [2.0, 2.0]})
    findings.add("write", "ours", {SECONDS: 5})
    findings.compare("ours", "theirs", SECONDS, SPEED, CPU_SECONDS)
    return findings


def test_ratios_pair_the_turns_of_what_both_have():
    (ratio,) = example().ratios
    assert (ratio.what, ratio.measure, ratio.values) == ("read", SECONDS, (0.5, 1.5))


def test_unequal_turns_give_the_ratio_of_medians():
    findings = Findings("")
    findings.add("", "ours", {SECONDS: [1, 2, 6]})
    findings.add("", "theirs", {SECONDS: [4]})
    findings.compare("ours", "theirs", SECONDS)
    assert findings.ratios[0].values == (0.5,)


def test_nothing_is_divided_by_nothing():
    findings = Findings("")
    findings.add("", "ours", {SECONDS: [1, 2]})
    findings.add("", "theirs", {SECONDS: [1, 0]})
    findings.compare("ours", "theirs", SECONDS)
    assert not findings.ratios


def test_json_gives_the_same_findings_again():
    findings = example()
    again = Findings.from_dict(json.loads(json.dumps(findings.to_dict())))
    assert again == findings


def test_a_section_has_every_figure_ratio_note_and_table():
    text = section(example())
    for line in (
        "Two turns.",
        "| task | contender | s ↓ | tokens/s ↑ |",
        "| read | ours | 2 (1–3) | 20 (10–30) |",
        "| read | theirs | 2 |  |",
        "| write | ours | 5 |  |",
        "| read | s ↓ | ours ÷ theirs | 1 | 0.5 – 1.5 |",
        "A note.",
        "| b |",
    ):
        assert line in text.splitlines()
    findings = example()
    findings.broken.append("both are equal")
    assert "**Does not hold:** both are equal" in section(findings)


def test_numbers_are_short_and_true():
    assert told([0.123456]) == "0.123"
    assert told([1.23456, 2]) == "1.617 (1.235–2)"
    assert told([12345.6, 12345.6]) == "12,346"
    assert told([math.inf]) == "inf"
