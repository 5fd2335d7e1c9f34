"""The code of grafts counts for whoever reads a model that has them, and for nobody else."""

from __future__ import annotations

import json

import pytest

from pipelines.planning import identity
from stages.artifacts import Model, Report, write_report
from stages.stage import Context, Input, Output, Parameters, Stage

HYBRID = "grafts.hybrid.graft:HybridHeads"
PIPELINE = """\
name: grafted
stages:
  model: {uses: "tests.engine.test_grafted_inputs:Make", with: {graft: hybrid_heads}}
  figures: {uses: "tests.engine.test_grafted_inputs:Measure", inputs: {model: model}}
"""


class MakeParameters(Parameters):
    graft: str = "none"
    """Of the model."""


class Make(Stage):
    Params = MakeParameters
    outputs = {"model": Output(Model)}

    def run(self, context: Context) -> None:
        grafted = {"model_type": "regraft", "grafts": [{"name": self.params.graft}]}
        config = {} if self.params.graft == "none" else grafted
        (context.output("model") / "config.json").write_text(json.dumps(config))


class Measure(Stage):
    Params = Parameters
    inputs = {"model": Input(Model)}
    outputs = {"report": Output(Report)}

    def run(self, context: Context) -> None:
        write_report(context.output("report"), "measured", {}, {})


def test_an_edit_of_a_graft_reruns_what_reads_it(bench, fresh_code, monkeypatch):
    result = bench.run(PIPELINE)
    assert result.ok, result.failures
    made, read = result.manifests["model"], result.manifests["figures"]
    assert made.outputs["model"].code == (HYBRID,)
    assert "grafts" not in made.identity
    assert read.identity["grafts"] == [HYBRID]
    assert any(name.startswith("grafts.hybrid.delta_rule:") for name in read.code)
    assert bench.plan(PIPELINE).cached

    real = identity.fingerprint
    edited = {"grafts.hybrid.delta_rule:chunked": "edited"}
    monkeypatch.setattr(
        identity, "fingerprint", lambda target: {**real(target), **(edited if target == HYBRID else {})}
    )
    fresh_code()
    assert bench.reasons(PIPELINE, "figures") == "code: grafts/hybrid/delta_rule.py chunked changed"
    assert bench.plan(PIPELINE).steps["model"].state == "cached"
    waiting = bench.reasons(PIPELINE, "figures", "model.graft=none")
    assert waiting == "waits for what model will make; code: grafts/hybrid/delta_rule.py chunked changed"


@pytest.mark.parametrize("graft", ["none", "unheard_of"])
def test_other_models_bring_no_code(bench, graft):
    result = bench.run(PIPELINE, f"model.graft={graft}")
    assert result.ok, result.failures
    assert result.manifests["model"].outputs["model"].code == ()
    assert "grafts" not in result.manifests["figures"].identity
    assert bench.plan(PIPELINE, f"model.graft={graft}").cached
