"""Calibration windows on their way through a model, one decoder layer at a time.

Only the hidden states between two layers are held, for all windows. What a layer is given beside them (masks, rotary
embeddings) depends on the shape of a batch alone: that is found out on two probes, and a model for which it does not
hold is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.arithmetic import computing, raised
from grafts.depth import layers_name
from stages.errors import UserError
from stages.forwarding import forwarding

PROBE_TOKENS: Final = 64
"""Tokens of the windows that structure is looked for with."""


@dataclass(frozen=True)
class Call:
    """What one decoder layer is given beside its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, layer: nn.Module, hidden_BTH: Tensor) -> Tensor:
        """The hidden states that `layer` makes of `hidden_BTH`, whose shape this call is for."""
        with torch.no_grad():
            output = layer(hidden_BTH, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class Probe(NamedTuple):
    """A call of one layer with a short window."""

    hidden: Tensor
    """[1, T, H]"""
    call: Call

    def run(self, layer: nn.Module) -> Tensor:
        """The hidden states that `layer` makes of it."""
        return self.call.on(layer, self.hidden)


class LayerStream:
    """All windows [N, T] before one layer of `model`, from the first to the last.

    Raises UserError when the layers cannot be found or run one by one.
    """

    def __init__(self, model: PreTrainedModel, windows_NT: Tensor, batch_size: int) -> None:
        prefix = _layers_name(model)
        self.layers = {f"{prefix}.{index}": layer for index, layer in enumerate(model.get_submodule(prefix))}
        self._model, self._names = model, list(self.layers)
        self.probes = self._probe(windows_NT)
        batches = windows_NT.split(batch_size)
        self._calls = {
            len(batch): {name: probe.call for name, probe in self._calls_by_shape(batch).items()}
            for batch in {len(batch): batch for batch in batches}.values()
        }
        self._hidden = [self._calls_of(batch, self._names[:1])[self._names[0]].hidden for batch in batches]

    def run(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """What layer `name` makes of every batch: (its number, hidden states [B, T, H])."""
        layer = self.layers[name]
        with computing(layer):
            for number, hidden_BTH in enumerate(self._hidden):
                call = self._calls[len(hidden_BTH)][name]
                yield number, Call(raised(call.args), raised(call.kwargs)).on(layer, raised(hidden_BTH))

    def replace(self, number: int, hidden_BTH: Tensor) -> None:
        """Let batch `number` go on as `hidden_BTH`."""
        self._hidden[number] = hidden_BTH

    def _probe(self, windows_NT: Tensor) -> dict[str, Probe]:
        length = min(PROBE_TOKENS, windows_NT.shape[1])
        windows = (windows_NT[:1, :length], windows_NT[-1:, :length].flip(1))
        first, other = (self._calls_of(window, self._names) for window in windows)
        for name, following in pairwise(self._names):
            moved = first[name].call.on(self.layers[name], other[name].hidden) - other[following].hidden
            if torch.linalg.vector_norm(moved) > 1e-4 * torch.linalg.vector_norm(other[following].hidden):
                raise UserError(
                    f"{name} of {type(self._model).__name__} is given more than its input and the shape of the batch, "
                    "so its layers cannot be run one by one",
                    fix="quantize.rtn needs no calibration",
                )
        return first

    def _calls_by_shape(self, ids_BT: Tensor) -> dict[str, Probe]:
        """How a batch of this shape calls every layer; none of them computes, so the hidden states are no layer's."""
        name, probe = next(iter(self.probes.items()))
        with torch.no_grad():
            in_tuple = isinstance(self.layers[name](probe.hidden, *probe.call.args, **probe.call.kwargs), tuple)
        with ExitStack() as stack:
            for layer in self.layers.values():
                stack.enter_context(forwarding(layer, lambda x, *_, **__: (x,) if in_tuple else x))
            return self._calls_of(ids_BT, self._names)

    def _calls_of(self, ids_BT: Tensor, names: Sequence[str]) -> dict[str, Probe]:
        """How a forward pass on `ids_BT` calls the layers `names`, the last of which it never runs."""
        calls: dict[str, Probe] = {}

        def catch(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args or name in calls:
                what = "twice in one pass" if args else "without its hidden states in first place"
                raise UserError(f"{name} is called {what}", fix="quantize.rtn needs no calibration")
            calls[name] = Probe(args[0], Call(args[1:], kwargs))
            if name == names[-1]:
                raise _EnoughError

        with _before_each({name: self.layers[name] for name in names}, catch), torch.no_grad(), suppress(_EnoughError):
            self._model(input_ids=ids_BT.to(self._model.device), use_cache=False)
        return calls


class _EnoughError(Exception):
    """The last layer's input is known: the rest of the forward pass is not needed."""


@contextmanager
def _before_each(
    layers: Mapping[str, nn.Module], see: Callable[[str, tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: see(name, args, kwargs), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


def _layers_name(model: PreTrainedModel) -> str:
    try:
        return layers_name(model)
    except ValueError as error:
        raise UserError(str(error), fix="quantize.rtn needs no calibration and works for this model") from None
