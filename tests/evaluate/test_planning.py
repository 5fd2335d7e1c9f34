from __future__ import annotations

import subprocess
import sys

import pytest

from stages.registry import METHODS, find

HEAVY = ("torch", "transformers", "matplotlib", "pyarrow", "tokenizers", "lm_eval")


@pytest.mark.parametrize("name", ["perplexity", "distance", "speed"])
def test_planning_imports_nothing_heavy(name: str):
    module = METHODS[f"evaluate.{name}"].partition(":")[0]
    code = f"import sys, {module}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_timing_stage_wants_a_process_of_its_own():
    assert [find(f"evaluate.{name}").isolated for name in ("perplexity", "distance", "speed")] == [False, False, True]
