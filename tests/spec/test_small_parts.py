"""Gates, quantities, canonical JSON, the schema."""

import json
import math

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.planning.canonical import canonical, digest
from pipelines.spec.gate import COMPARE, parse_gate
from pipelines.spec.quantities import format_bytes, format_duration, parse_bytes, parse_duration
from pipelines.spec.schema import json_schema
from stages.errors import UserError
from stages.registry import find
from tests.spec.test_load import GOOD

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
@settings(max_examples=100, deadline=None)
def test_canonical_json_ignores_order_and_reads_back(value):
    shuffled = dict(reversed(list(value.items())))
    assert digest(value) == digest(shuffled)
    assert json.loads(canonical(value)) == value


@pytest.mark.parametrize(
    "value", [{1: 2}, {"a": math.nan}, [math.inf], {"a": {1, 2}}, [object()], b"x", {"a": [print]}]
)
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError):
        canonical(value)


def test_a_stage_that_is_not_there_is_told_with_those_that_can_be_named():
    with pytest.raises(UserError) as caught:
        find("stages.distill.logits:Nothing")
    assert caught.value.fix == "stages there: DistillLogits"
    with pytest.raises(UserError, match="os has no stage 'system'") as caught:
        find("os:system")
    assert caught.value.fix == "name a module that defines a subclass of stages.stage.Stage"


def test_int_and_float_are_different_identities():
    assert digest({"a": 1}) != digest({"a": 1.0})


@given(st.text())
def test_a_gate_is_read_or_refused(text):
    try:
        gate = parse_gate("m", text)
    except ValueError as error:
        assert "is not a gate" in str(error)
    else:
        assert gate.failure({"m": math.nan})


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<1.5", "< 1.5"),
        (">= -2e-3", ">= -0.002"),
        ("< 1.23456789", "< 1.23456789"),
        ("< 1.00000001 * ${a.b}", "< 1.00000001 * ${a.b}"),
        ("<= 1.05 * ${baseline.perplexity}", "<= 1.05 * ${baseline.perplexity}"),
        ("<= ${ p[model=a,x=0.5].loss } * 2", "<= 2 * ${p[model=a,x=0.5].loss}"),
        ("== ${a-b.c}", "== ${a-b.c}"),
    ],
)
def test_gates_are_read(text, plain):
    assert parse_gate("m", text).text == plain
    assert parse_gate("m", plain).text == plain


@given(st.floats(0.1, 10), st.floats(-5, 5), st.floats(-5, 5), st.sampled_from(["<", "<=", ">", ">=", "=="]))
def test_a_gate_on_another_stage_is_the_comparison_it_says(factor, value, other, comparison):
    gate = parse_gate("m", f"{comparison} {factor!r} * ${{s.o}}")
    expected = COMPARE[comparison](value, factor * other)
    assert (gate.failure({"m": value}, {"s": {"o": other}}) is None) == expected


def test_gates_on_what_is_not_there():
    gate = parse_gate("m", "< 2 * ${s.o}")
    assert "s reports no 'o'; it reports: p" in str(gate.failure({"m": 1}, {"s": {"p": 1}}))
    assert "the bound is 1" in str(gate.failure({"m": 3}, {"s": {"o": 0.5}}))


def test_gates():
    gate = parse_gate("kl", "<1.5")
    assert gate.failure({"kl": 1.4}) is None
    assert gate.failure({"kl": 1.5}) == "expected kl < 1.5, found kl = 1.5"
    assert gate.failure({"kl": 1.50000004}) == "expected kl < 1.5, found kl = 1.50000004"
    close = parse_gate("kl", "< 1.00000001 * ${a.b}").failure({"kl": 2.0}, {"a": {"b": 1.99999997}})
    assert "found kl = 2, and the bound is 1.99999998999999" in str(close)
    assert "reports no 'kl'; it reports: loss" in str(gate.failure({"loss": 1}))


@given(st.integers(0, 10**15))
def test_sizes_read_what_they_mean(size):
    assert parse_bytes(size) == size == parse_bytes(f"{size}B")
    assert format_bytes(size)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("2h", 7200), ("1h30m", 5400), (5, 5), ("1.5m", 90)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5", "-3s", "0s", 0, True, "1h 30", "3 hours"])
def test_bad_durations(text):
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.42, "0.4 s"), (59, "59 s"), (200, "3m 20s"), (7500, "2h 05m")])
def test_durations_are_written(seconds, text):
    assert format_duration(seconds) == text


def test_schema_accepts_good_files_and_refuses_bad_ones():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(yaml.safe_load(GOOD))
    for bad in (GOOD.replace("retries: 2", "retries: -2"), GOOD.replace("seed: 3", "sed: 3"), "name: x"):
        assert list(validator.iter_errors(yaml.safe_load(bad)))
    for bad in ("resources: {cpus: many}", "resources: {cpu: 1}", "seed: first", "max_parallel: 0"):
        assert list(validator.iter_errors(yaml.safe_load(f"name: x\nstages: {{s: {{uses: source.model, {bad}}}}}")))
    method = {"name": "x", "stages": {"m": {"uses": "source.model", "with": {"modle": "x"}}}}
    assert list(validator.iter_errors(method))
