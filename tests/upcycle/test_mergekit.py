"""The mixture that `mergekit-moe` makes of the same models, where it is installed: the same tensors and logits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.artifacts import Model
from stages.upcycle.btx import UpcycleBtx
from tests.tiny import tiny_model
from tests.upcycle.families import branch, run

pytest.importorskip("mergekit", reason="the comparison needs mergekit: pip install mergekit")


@pytest.mark.parametrize("tied", [False, True])
def test_feed_forward_experts_are_those_of_mergekit(tmp_path, tied):
    seed = tiny_model(tmp_path / "seed", tie_embeddings=tied)
    experts = [branch(seed, tmp_path / f"expert-{number}", number) for number in range(2)]
    recipe = {
        "base_model": str(seed),
        "gate_mode": "random",
        "dtype": "float32",
        "experts": [{"source_model": str(path)} for path in experts],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", "from mergekit.scripts.moe import main; main()"]
    subprocess.run([*command, str(tmp_path / "recipe.yaml"), str(tmp_path / "theirs"), "--quiet"], check=True)

    inputs = {"seed": Model(seed), "experts": [Model(path) for path in experts]}
    run(UpcycleBtx, inputs, tmp_path, seed_is_expert=False, others="seed")
    theirs, ours = (AutoModelForCausalLM.from_pretrained(tmp_path / path) for path in ("theirs", "out/model"))
    assert type(theirs) is type(ours)
    wanted, found = theirs.state_dict(), ours.state_dict()
    routers = {name for name in wanted if name.endswith("mlp.gate.weight")}
    assert {name for name in wanted if not torch.equal(wanted[name], found[name])} == routers, "both random"
    ours.load_state_dict({**found, **{name: wanted[name] for name in routers}})
    ids = torch.arange(3, 90).view(3, 29)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
