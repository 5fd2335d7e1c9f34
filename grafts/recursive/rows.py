"""A block of looped layers on rows of which each is in a loop of its own: the shared weights are read once for all."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from grafts.bases import decoder_layers
from grafts.recursive.relaxed import RelaxedLinear


@dataclass
class Rows:
    """What the layers are told of the rows that they work on."""

    slots: Tensor
    """[N], which sequence of the cache each row belongs to."""
    loops: Tensor
    """[N], the loop that each row is in, from 0."""
    positions: Tensor
    """[N], of the row's token in its sequence."""
    parts: list[tuple[int, Tensor]] = field(init=False)
    """The loops that occur, with the indices of their rows."""
    longest: int = field(init=False)
    """Tokens of the longest of their sequences up to now."""
    known: dict[tuple[str, Any], Any] = field(default_factory=dict)
    """Rotations, masks and chosen columns, which layers of one kind have in common."""

    def __post_init__(self) -> None:
        self.longest = int(self.positions.max()) + 1
        self.parts = [(int(loop), (self.loops == loop).nonzero()[:, 0]) for loop in self.loops.unique()]

    def chosen(self, loop_R: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Which of R columns, each of a loop, are of a row's own: 1 or 0, [N, 1, R]."""
        key = ("chosen", (dtype, loop_R))
        if key not in self.known:
            columns_R = torch.tensor(loop_R, device=self.loops.device)
            self.known[key] = (self.loops[:, None, None] == columns_R).to(dtype)
        return self.known[key]


class _Current:
    """The rows at work; one object for all layers."""

    rows: Rows


class ByLoop(nn.Module):
    """One module for each loop; each row goes through that of its own loop."""

    def __init__(self, variants: Sequence[nn.Module], current: _Current) -> None:
        super().__init__()
        self.variants, self.current = nn.ModuleList(variants), current

    def forward(self, x_N1D: Tensor) -> Tensor:
        """[N, 1, D] to [N, 1, O], or any shape whose first axis is that of the rows."""
        parts = self.current.rows.parts
        if len(parts) == 1 or len(self.variants) == 1:
            return self.variants[parts[0][0] if len(self.variants) > 1 else 0](x_N1D)
        return self._mixed(x_N1D, self.current.rows)

    def _mixed(self, x_N1D: Tensor, at_work: Rows) -> Tensor:
        parts = at_work.parts
        made = [self.variants[loop](x_N1D[rows]) for loop, rows in parts]
        out = made[0].new_empty(len(x_N1D), *made[0].shape[1:])
        for (_, rows), part in zip(parts, made, strict=True):
            out[rows] = part
        return out


class LinearByLoop(ByLoop):
    """Linears that share their weight: one product for all rows, then what each loop has of its own.

    The differences of all loops are one, of the sum of their ranks; a row goes through those columns that are its
    loop's. Few large products are faster than many small ones, though they compute what is then left out.
    """

    def __init__(self, variants: Sequence[nn.Module], current: _Current) -> None:
        super().__init__(variants, current)
        relaxed = [(loop, one) for loop, one in enumerate(variants) if isinstance(one, RelaxedLinear)]
        self.left_OR = torch.cat([one.left.detach() for _, one in relaxed], 1) if relaxed else None
        self.right_RI = torch.cat([one.right.detach() for _, one in relaxed]) if relaxed else None
        self.loop_R = tuple(loop for loop, one in relaxed for _ in range(one.left.shape[1]))
        biases = [_linear(one).bias for one in variants]
        self.bias_LO = None if biases[0] is None else torch.stack([bias.detach() for bias in biases])

    def _mixed(self, x_N1D: Tensor, at_work: Rows) -> Tensor:
        out_N1O = functional.linear(x_N1D, _linear(self.variants[0]).weight)
        if self.left_OR is not None and self.right_RI is not None:
            low_N1R = functional.linear(x_N1D, self.right_RI) * at_work.chosen(self.loop_R, x_N1D.dtype)
            out_N1O += functional.linear(low_N1R, self.left_OR)
        if self.bias_LO is not None:
            out_N1O += self.bias_LO[at_work.loops].unsqueeze(1)
        return out_N1O


class Cache:
    """Keys and values of every layer, slot and position; what `transformers` layers call `past_key_values`."""

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots, self.max_length = num_slots, max_length
        self.current = _Current()
        self.runs: dict[int, list[int]] = {}
        """The layers that run with the parameters of one, loop by loop."""
        self.stores: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values [loops, slots, H, T, D] of the layers that run with the parameters of one."""

    def update(self, keys_NH1D: Tensor, values_NH1D: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep the rows' keys and values; all those of the rows' sequences up to now, [N, H, T, D]."""
        rows = self.current.rows
        for store, new in zip(self._stores(layer, keys_NH1D), (keys_NH1D, values_NH1D), strict=True):
            store[rows.loops, rows.slots, :, rows.positions] = new[:, :, 0]
        keys, values = (store[rows.loops, rows.slots, :, : rows.longest] for store in self.stores[layer])
        return keys, values

    def fill(self, slot: int, layer: int, keys_1HTD: Tensor, values_1HTD: Tensor, length: int) -> None:
        """The keys and values of a prompt of `length` tokens; a layer with a window may have its last ones only."""
        owner = next(owner for owner, runs in self.runs.items() if layer in runs)
        loop = self.runs[owner].index(layer)
        for store, new in zip(self._stores(owner, keys_1HTD), (keys_1HTD, values_1HTD), strict=True):
            store[loop, slot, :, length - new.shape[2] : length] = new[0]

    def _stores(self, owner: int, like_NHTD: Tensor) -> tuple[Tensor, Tensor]:
        if owner not in self.stores:
            heads, width = like_NHTD.shape[1], like_NHTD.shape[3]
            shape = (len(self.runs[owner]), self.num_slots, heads, self.max_length, width)
            self.stores[owner] = (like_NHTD.new_zeros(shape), like_NHTD.new_zeros(shape))
        return self.stores[owner]


class Layer:
    """The layers that share parameters, as one that takes rows of any loop."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], cache: Cache) -> None:
        self.model, self.cache = model, cache
        self.module, self.kind = _merged(model, layers, cache.current), _kind(model, layers[0])
        cache.runs[layers[0]] = list(layers)

    def __call__(self, hidden_N1D: Tensor, rows: Rows) -> Tensor:
        """The layer's output, [N, 1, D]; the rows' keys and values are kept."""
        self.cache.current.rows = rows
        return self.module(
            hidden_N1D,
            attention_mask=self._mask(rows, hidden_N1D.dtype),
            position_embeddings=self._rotation(hidden_N1D, rows),
            past_key_values=self.cache,
            use_cache=True,
        )

    def pass_by(self, hidden_N1D: Tensor, rows: Rows) -> None:
        """Keep keys and values of rows that do not run this layer: those of the hidden states that they left with."""
        self.cache.current.rows = rows
        attention = self.module.self_attn
        normed_N1D = self.module.input_layernorm(hidden_N1D)
        shape = (*normed_N1D.shape[:2], -1, attention.head_dim)
        keys, values = (linear(normed_N1D).view(shape) for linear in (attention.k_proj, attention.v_proj))
        keys = attention.k_norm(keys) if hasattr(attention, "k_norm") else keys
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        keys = keys.transpose(1, 2)
        _, keys = rotate(keys, keys, *self._rotation(hidden_N1D, rows))
        self.cache.update(keys, values.transpose(1, 2), attention.layer_idx)

    def _rotation(self, hidden_N1D: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        if ("rotation", self.kind) not in rows.known:
            rotary = self.model.model.rotary_emb
            by_kind = (self.kind,) if "layer_type" in inspect.signature(rotary.forward).parameters else ()
            rows.known["rotation", self.kind] = rotary(hidden_N1D, rows.positions[:, None], *by_kind)
        return rows.known["rotation", self.kind]

    def _mask(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        if ("mask", self.kind) not in rows.known:
            ages_NT = rows.positions[:, None] - torch.arange(rows.longest, device=rows.positions.device)
            seen_NT = ages_NT >= 0
            if self.kind == "sliding_attention":
                seen_NT &= ages_NT < self.model.config.sliding_window
            mask_NT = torch.zeros(ages_NT.shape, dtype=dtype, device=ages_NT.device)
            rows.known["mask", self.kind] = mask_NT.masked_fill_(~seen_NT, torch.finfo(dtype).min)[:, None, None]
        return rows.known["mask", self.kind]


def _kind(model: PreTrainedModel, layer: int) -> str:
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        return kinds[layer]
    return "sliding_attention" if getattr(model.config, "sliding_window", None) else "full_attention"


def _merged(model: PreTrainedModel, layers: Sequence[int], current: _Current) -> nn.Module:
    """The first of `layers`, with modules that know the others; of their parameters, only differences are copied."""
    variants = [decoder_layers(model)[layer] for layer in layers]
    merged = copy.deepcopy(variants[0], {id(p): p for p in variants[0].parameters()})
    for name, _ in list(_leaves(variants[0])):
        same = [variant.get_submodule(name) for variant in variants]
        shared = len({_linear(m).weight.data_ptr() for m in same}) == 1 and isinstance(_linear(same[0]), nn.Linear)
        merged.set_submodule(name, (LinearByLoop if shared else ByLoop)(same, current))
    return merged.eval()


def _leaves(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold parameters, with a relaxed linear as one."""
    relaxed = [name for name, module in layer.named_modules() if isinstance(module, RelaxedLinear)]
    for name, module in layer.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in relaxed)
        if not inside and (name in relaxed or any(True for _ in module.parameters(recurse=False))):
            yield name, module


def _linear(module: nn.Module) -> Any:
    return module.linear if isinstance(module, RelaxedLinear) else module
