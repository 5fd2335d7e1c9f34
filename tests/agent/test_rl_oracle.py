"""The loss against TRL's GRPO on the same tensors, and group advantages against its formula. Needs `trl`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from grafts.loader import load_model
from stages.agent.rl.log_probs import policy_log_probs
from stages.agent.rl.losses import token_loss, token_weights
from stages.agent.rl.rules import LossRule
from tests.tiny import tiny_model

trl = pytest.importorskip("trl", reason="the oracle is TRL: pip install trl")
PROMPT, LENGTH = 5, 9
RULE = LossRule(clip_low=0.2, clip_high=0.28, kl_weight=0.04)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "model", vocab_size=300)


def trainer(directory: Path, model: PreTrainedModel, loss_type: str, out: Path) -> Any:
    from datasets import Dataset

    config = trl.GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=3,
        num_generations=3,
        max_completion_length=LENGTH,
        loss_type=loss_type,
        beta=RULE.kl_weight,
        use_bias_correction_kl=False,
        epsilon=RULE.clip_low,
        epsilon_high=RULE.clip_high,
        temperature=0.8,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
    )
    data = Dataset.from_dict({"prompt": ["x", "y", "z"]})
    tokenizer = AutoTokenizer.from_pretrained(directory)
    made = trl.GRPOTrainer(
        model, reward_funcs=lambda **_: [0.0], args=config, train_dataset=data, processing_class=tokenizer
    )
    made.current_gradient_accumulation_steps = 1
    return made


def tensors() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 300, (3, PROMPT + LENGTH), generator=generator)
    sampled = torch.zeros(3, PROMPT + LENGTH, dtype=torch.bool)
    sampled[0, PROMPT:] = sampled[1, PROMPT : PROMPT + 4] = sampled[2, PROMPT + 3 :] = True
    sampled[0, PROMPT + 2 : PROMPT + 5] = False  # what a tool said
    noise = torch.randn(2, 3, PROMPT + LENGTH, generator=generator) * 0.3
    return SimpleNamespace(ids=ids, sampled=sampled, noise=noise, advantage=torch.tensor([1.5, -0.5, -1.0]))


def ours(model: PreTrainedModel, given: SimpleNamespace, aggregation: Any) -> tuple[Tensor, Tensor, Tensor]:
    logp, _ = policy_log_probs(model, given.ids, given.sampled, 0.8)
    old, reference = (logp.detach() + given.noise[0], logp.detach() + given.noise[1])
    advantage = given.advantage.unsqueeze(1).expand_as(logp)
    found = token_loss(logp, old, reference, advantage, RULE)
    return (found.loss * token_weights(given.sampled, aggregation)).sum() / len(given.ids), old, reference


@pytest.mark.parametrize(("loss_type", "aggregation"), [("grpo", "sequence"), ("dapo", "token"), ("bnpo", "token")])
def test_the_loss_and_its_gradient_equal_trl(directory: Path, tmp_path: Path, loss_type: str, aggregation: str) -> None:
    model, given = load_model(directory, dtype=torch.float32), tensors()
    model.train()
    loss, old, reference = ours(model, given, aggregation)
    loss.backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    completion = given.sampled[:, PROMPT:].long()
    theirs = trainer(directory, model, loss_type, tmp_path)._compute_loss(
        model,
        {
            "prompt_ids": given.ids[:, :PROMPT],
            "prompt_mask": torch.ones(3, PROMPT, dtype=torch.long),
            "completion_ids": given.ids[:, PROMPT:],
            "completion_mask": torch.ones(3, LENGTH, dtype=torch.long),
            "tool_mask": completion,
            "advantages": given.advantage,
            "old_per_token_logps": old[:, PROMPT:],
            "ref_per_token_logps": reference[:, PROMPT:],
            "num_items_in_batch": completion.sum(),
        },
    )
    theirs.backward()
    torch.testing.assert_close(loss, theirs, atol=1e-6, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(expected[name], parameter.grad, atol=1e-6, rtol=1e-4)
