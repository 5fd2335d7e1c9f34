"""A stage that runs out of memory is tried again in less; a wide matrix runs a few arms at a time."""

import pytest

from clusters.executor import InlineExecutor
from pipelines.running.ladder import is_out_of_memory
from stages import registry
from stages.errors import UserError
from stages.training.settings import TrainingParameters
from tests.engine.conftest import Bench

GREEDY = "name: x\nstages: {a: {uses: 'tests.toy:Greedy'}}"


@pytest.mark.parametrize("error", ["MemoryError", "torch"])
def test_less_is_tried_without_retries_and_recorded(bench: Bench, error: str):
    result = bench.run(GREEDY, f"a.error={error}")
    assert result.ok, result.failures
    manifest = result.manifests["a"]
    assert manifest.evidence["out_of_memory"] == ["batch_size 8 → 4", "batch_size 4 → 2"]
    assert manifest.evidence["attempt"] == 3
    journal = (bench.store.run_directory(result.run) / "journal.jsonl").read_text()
    assert "attempt 1 ran out of memory; trying again with batch_size 8 " in journal
    assert bench.run(GREEDY, f"a.error={error}").states == {"a": "cached"}, "the result is that of the stage as written"


def test_the_end_of_the_ladder_is_a_failure(bench: Bench):
    result = bench.run(GREEDY, "a.room=0")
    assert "MemoryError" in result.failures["a"].message
    assert "batch_size 2 " in (bench.store.run_directory(result.run) / "journal.jsonl").read_text()


def test_a_user_s_mistake_is_no_lack_of_memory():
    assert not is_out_of_memory(ValueError("memory of elephants"))
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("while training") from error
    except ValueError as error:
        assert is_out_of_memory(error)


def test_training_goes_down_by_execution_fields_alone():
    params, seen = TrainingParameters(micro_batch=4), []
    while (smaller := params.smaller(workers=2)) is not None:
        assert smaller.identity() == params.identity()
        seen.append((smaller.micro_batch, smaller.activation_checkpointing, smaller.zero_stage))
        params = smaller
    assert seen == [(2, False, 0), (1, False, 0), (1, True, 0), (1, True, 1), (1, True, 2), (1, True, 3)]
    assert TrainingParameters(micro_batch=1, activation_checkpointing=True).smaller(workers=1) is None


@pytest.mark.parametrize("method", registry.METHODS)
def test_no_method_changes_its_result_on_the_way_down(method: str):
    fields = registry.find(method).Params.model_fields
    something = {"tasks": ("local_boolq",), "datasets": ("a",), "tokens": 1000}
    required = {name: something.get(name, "x") for name, field in fields.items() if field.is_required()}
    params, count = registry.find(method).Params(**required), 0
    while params is not None and count < 40:
        identity, params, count = params.identity(), params.smaller(workers=2), count + 1
        assert params is None or params.identity() == identity
    assert count < 40, "it ends"


def test_a_matrix_runs_no_more_arms_at_a_time_than_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    most = []
    start = InlineExecutor.start

    def counted(self, name, payload, request):
        start(self, name, payload, request)
        most.append(len(self.queue))

    monkeypatch.setattr(InlineExecutor, "start", counted)
    monkeypatch.setattr(InlineExecutor, "full", lambda self: False)  # as a cluster is: work queues there
    text = """name: x
stages:
  a: {uses: "tests.toy:Write", matrix: {text: [a, b, c, d, e]}, max_parallel: 2}
  b: {uses: "tests.toy:Write"}
  j: {uses: "tests.toy:Join", inputs: {texts: a}}
"""
    result = bench.run(text)
    assert result.ok
    assert result.manifests["j"].metrics["length"] == 9
    assert max(most) == 3, "two arms and another stage"
    most.clear()
    assert bench.run(text.replace(", max_parallel: 2", ""), "a.repeat=2").ok
    assert max(most) == 5


@pytest.mark.parametrize("wrong", ["0", "two"])
def test_a_wrong_limit_is_told(bench: Bench, wrong: str):
    with pytest.raises(UserError, match="max_parallel"):
        bench.run(f"name: x\nstages: {{a: {{uses: 'tests.toy:Write', max_parallel: {wrong}}}}}")
