from __future__ import annotations

import subprocess
import sys

import pytest

from stages.registry import METHODS, find
from tests.evaluate.declared import undeclared

HEAVY = ("torch", "transformers", "matplotlib", "pyarrow", "tokenizers", "lm_eval")


@pytest.mark.parametrize("name", ["perplexity", "distance", "speed"])
def test_planning_imports_nothing_heavy(name: str):
    module = METHODS[f"evaluate.{name}"].partition(":")[0]
    code = f"import sys, {module}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "right", "misspelt"),
    [
        ("perplexity", "bits_per_byte", "bits_per_bytes"),
        ("distance", "kl_to_parent", "kl_parent"),
        ("speed", "decode_ratio", "decode_ration"),
        ("long_context", "multi_key_accuracy_512", "multikey_accuracy_512"),
    ],
)
def test_a_gate_on_a_misspelt_figure_is_refused_before_the_run(name: str, right: str, misspelt: str):
    stage = find(f"evaluate.{name}")
    assert undeclared(stage(stage.Params()), [right, misspelt]) == [misspelt]


def test_only_the_timing_stage_wants_a_process_of_its_own():
    assert [find(f"evaluate.{name}").isolated for name in ("perplexity", "distance", "speed")] == [False, False, True]
