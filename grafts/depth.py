"""Depth pruning: a model with fewer of its decoder layers, evenly spread or any others, as the same standard class.

A pruned model needs no code of this project to load: its config says fewer layers, and everything the config lists per
layer (`layer_types` and the like) is cut with them. Keeping every layer changes nothing, to the bit. Dropping
whole layers and distilling the rest follows ShortGPT (arXiv 2403.03853) and Minitron (arXiv 2408.11796).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights


def uniform_layers(num_layers: int, num_kept: int) -> list[int]:
    """Indices of `num_kept` layers spread evenly over `num_layers`, ascending; the first and the last always stay.

    Raises ValueError unless 2 <= num_kept <= num_layers (or both are 1).
    """
    if not (2 <= num_kept <= num_layers or num_kept == num_layers == 1):
        raise ValueError(f"cannot keep {num_kept} of {num_layers} layers: keep 2 to {num_layers}")
    if num_kept == 1:
        return [0]
    gaps = num_kept - 1
    # Rounded to the nearest in integers, so that no machine's floating point decides which layers stay.
    return [(2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(num_kept)]


def num_kept_layers(num_layers: int, fraction: float) -> int:
    """How many of `num_layers` the share `fraction` (0, 1] keeps: rounded, at least 2."""
    return min(num_layers, max(2, round(num_layers * fraction)))


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A new model of `model`'s class, on the CPU in its dtype, with copies of its decoder layers `layers` alone.

    Raises ValueError when the indices are not ascending layers of the model, or its layers cannot be told apart.
    """
    num_layers = model.config.num_hidden_layers
    if getattr(model.config, "grafts", ()):
        raise ValueError("the model is grafted, its grafts name its layers: prune by depth first, then graft")
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= num_layers:
        raise ValueError(f"cannot keep layers {list(layers)} of a model with layers 0 to {num_layers - 1}")
    with no_init_weights():
        pruned = type(model)._from_config(pruned_config(model.config, layers), dtype=model.dtype)
    weights = _pruned_weights(model, layers_name(model), layers)
    try:
        pruned.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} does not take {len(layers)} of its layers: {error}") from error
    pruned.tie_weights()  # building without initial values builds without ties
    pruned.generation_config = copy.deepcopy(model.generation_config)
    return pruned.eval()


def pruned_config(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """A copy of `config` for `layers` alone: the count, and every list of it that has one entry a layer, cut."""
    pruned, num_layers = copy.deepcopy(config), config.num_hidden_layers
    if config.to_dict().get("per_layer_config"):
        raise ValueError("the config gives single layers their own widths (`per_layer_config`); prune an even model")
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == num_layers:
            setattr(pruned, name, [value[layer] for layer in layers])
    pruned.num_hidden_layers = len(layers)
    return pruned


def layers_name(model: nn.Module) -> str:
    """Name of the module that lists the decoder layers (`model.layers`). Raises ValueError unless there is one."""
    num_layers = model.config.num_hidden_layers
    lists = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(outermost)} lists of {num_layers} modules, expected its layers"
        )
    return outermost[0]


def _pruned_weights(model: nn.Module, prefix: str, layers: Sequence[int]) -> dict[str, Tensor]:
    """The state dict of `model` without the other layers, those kept renumbered from 0."""
    number = {str(layer): str(new) for new, layer in enumerate(layers)}
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, _, rest = name.removeprefix(f"{prefix}.").partition(".")
        if not name.startswith(f"{prefix}."):
            weights[name] = tensor
        elif layer in number:
            weights[f"{prefix}.{number[layer]}.{rest}"] = tensor
    return weights
