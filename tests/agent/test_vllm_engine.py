"""vLLM as the engine: what it cannot do is refused, and on a CUDA device its log-probabilities are the policy's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from grafts.loader import load_model
from stages.agent.conversation.rendering import load_renderer
from stages.agent.evaluate.stage import AgentEvaluateParameters
from stages.agent.rl.log_probs import policy_log_probs
from stages.agent.rollout.engine import Request, Sampling
from stages.agent.rollout.opening import open_engine
from stages.agent.rollout.transformers_engine import TransformersEngine
from stages.artifacts import Model, write_json
from stages.errors import UserError
from tests.tiny import tiny_model

PROMPTS = ("The capital of France is", "One, two, three,", "Once upon a time")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


def test_transformers_writes_unless_another_is_asked_for(tiny: Model) -> None:
    assert AgentEvaluateParameters().engine == "transformers"
    assert isinstance(open_engine("transformers", tiny, 0, Sampling(), "float32", 64), TransformersEngine)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_told(tiny: Model) -> None:
    with pytest.raises(UserError, match="vLLM is not installed here") as raised:
        open_engine("vllm", tiny, 0, Sampling(), "float32", 64)
    assert "engine: transformers" in raised.value.fix


def test_what_vllm_cannot_do_is_refused(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"temperature 0\.7 with top_p 0\.9"):
        open_engine("vllm", tiny, 0, Sampling(0.7, 0.9), "float32", 64)
    write_json(tmp_path / "config.json", {"model_type": "regraft", "grafts": [{"kind": "hybrid_heads"}]})
    with pytest.raises(UserError, match="does not know the grafts"):
        open_engine("vllm", Model(tmp_path), 0, Sampling(), "float32", 64)


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probabilities_are_those_of_the_policy(tmp_path: Path, temperature: float) -> None:
    pytest.importorskip("vllm", reason="pip install vllm")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from benchmarks.sources import source_model

    source = Model(source_model(tmp_path))
    renderer = load_renderer(source)
    ids = [renderer.encode_text(prompt) for prompt in PROMPTS]
    engine = open_engine("vllm", source, renderer.stop_id, Sampling(temperature), "float32", 256)
    requests = [Request(key, prompt, 7 + key, 24) for key, prompt in enumerate(ids)]
    written = engine.write(requests)
    assert [turn.ids for turn in engine.write(requests)] == [turn.ids for turn in written], "equal seeds draw alike"
    policy = load_model(source.path, dtype=torch.float32).cuda().eval()
    for prompt, turn in zip(ids, written, strict=True):
        whole = torch.tensor([[*prompt, *turn.ids]], device="cuda")
        sampled = torch.arange(whole.shape[1], device="cuda")[None] >= len(prompt)
        with torch.no_grad():
            logp, _ = policy_log_probs(policy, whole, sampled, temperature or 1.0)
        torch.testing.assert_close(logp[0, len(prompt) :].cpu(), torch.tensor(turn.logp), atol=1e-2, rtol=0)
