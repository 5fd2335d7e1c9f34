"""The DeepSpeed engine, configured for the loop: ZeRO 0-3, float32 accumulation, torch's AdamW.

Two settings are decided here rather than by the user. Under bf16, DeepSpeed's stage 0 accumulates gradients in bf16, so
that accumulation would not equal the whole batch; stage 1 with float32 accumulation is used in its place (on the same
maths). And no C++ is compiled, see `use_no_compiled_operations`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stages.errors import UserError
from stages.training.precision import torch_dtype

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from stages.training.recipe import Worker
    from stages.training.settings import TrainingParameters

BUCKET = 50_000_000
"""Elements that travel in one collective of ZeRO: 200 MB of float32."""


def build_engine(module: nn.Module, settings: TrainingParameters, worker: Worker, num_micro: int) -> DeepSpeedEngine:
    """Wrap `module` for training; the process group must exist.

    `num_micro` is the number of forward passes of each worker in one step. Raises UserError when nothing is trainable.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if settings.activation_checkpointing:
        _recompute_activations(module)
    optimiser = torch.optim.AdamW(
        parameter_groups(module, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its memory use at every turn
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimiser, config=configuration(settings, num_micro), dist_init_required=False
        )
    # The two ways in which distributed training goes wrong without a word: another engine, or a world of one each.
    assert type(engine) is deepspeed.DeepSpeedEngine, f"expected a DeepSpeedEngine, got {type(engine).__name__}"
    assert engine.world_size == worker.world_size, f"{engine.world_size} workers trained, {worker.world_size} asked for"
    engine.train()
    return engine


def configuration(settings: TrainingParameters, num_micro: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `settings`."""
    bf16 = torch_dtype(settings.precision) == torch.bfloat16
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": num_micro,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # Without ZeRO the loop clips by itself: DeepSpeed would not tell the norm.
        "gradient_clipping": settings.gradient_clip if engine_stage(settings) else 0.0,
        "zero_optimization": {
            "stage": engine_stage(settings),
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "overlap_comm": torch.cuda.is_available(),
        },
        "zero_allow_untested_optimizer": False,
        "steps_per_print": None,
        "checkpoint": {"tag_validation": "Fail"},
    }


def engine_stage(settings: TrainingParameters) -> int:
    """The ZeRO stage that really runs: bf16 at stage 0 accumulates in bf16, so stage 1 takes its place."""
    return max(settings.zero_stage, 1) if torch_dtype(settings.precision) == torch.bfloat16 else settings.zero_stage


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters, matrices with `weight_decay` and vectors without; each shared tensor once."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise UserError(
            f"{type(module).__name__} has no trainable parameter",
            fix="the stage froze every weight: unfreeze what it trains",
        )
    matrices, vectors = [p for p in trainable if p.ndim >= 2], [p for p in trainable if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(engine: DeepSpeedEngine, learning_rate: float) -> None:
    """The learning rate of the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def clipped_norm(engine: DeepSpeedEngine, settings: TrainingParameters) -> float | None:
    """Clip the reduced gradients where DeepSpeed does not (stage 0) and return their norm before that, else None."""
    if engine_stage(settings):
        return None
    return nn.utils.clip_grad_norm_(engine.module.parameters(), settings.gradient_clip).item()


def full_weights(engine: DeepSpeedEngine, *, keep: bool) -> dict[str, torch.Tensor]:
    """Copies on the CPU of the whole parameters and the buffers by name, empty without `keep`; shared tensors once.

    Under ZeRO 3 they are gathered one at a time, so every worker must call it, with `keep` or without.
    """
    import deepspeed

    stage_3, weights = engine.zero_optimization_partition_weights(), {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage_3):
            if keep:
                weights[name] = parameter.detach().cpu().clone()
    if keep:
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in engine.module.named_buffers()}
    return weights


def _recompute_activations(module: nn.Module) -> None:
    enable = getattr(module, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(module, "supports_gradient_checkpointing", False):
        raise UserError(
            f"{type(module).__name__} cannot recompute activations", fix="set `activation_checkpointing: false`"
        )
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def use_no_compiled_operations() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce when the process group starts.

    Its one user is `inference_all_reduce` of tensor-parallel inference; training goes through gloo or nccl with or
    without it. DeepSpeed builds an operation only if its own table calls it compatible, and keeps edits to that table.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def use_accelerator() -> torch.device:
    """Settle DeepSpeed's accelerator before it is imported, and return this worker's device."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    os.environ["DS_ACCELERATOR"] = "cpu"
    return torch.device("cpu")
