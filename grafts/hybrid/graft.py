"""The graft `hybrid_heads`: which heads of a model stay softmax attention, and what the others become.

A layer-wise hybrid (HALO, arXiv 2601.22156) is the same graft with all heads or none kept in a layer; plain sliding
windows, for comparison, are `others="sliding_window"`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt
from pydantic import field_validator
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from grafts.bases import decoder_layers
from grafts.graft import Graft, Place, Sources
from grafts.hybrid.calibration import head_rms
from grafts.hybrid.mixer import HybridAttention
from grafts.hybrid.settings import DeltaNet, Softmax


class HybridHeads(Graft):
    """Heads of each layer split into softmax attention and a linear (or windowed) kind (arXiv 2606.20097)."""

    name: ClassVar[str] = "hybrid_heads"
    place: ClassVar[Place] = "attention"

    full_heads: tuple[tuple[int, ...] | None, ...]
    """For each layer, the query heads that stay softmax attention over everything; null: the layer stays as it is."""
    others: Literal["gated_deltanet", "sliding_window"] = "gated_deltanet"
    """What the other heads become."""
    softmax: Softmax = Softmax()
    """The heads that stay."""
    deltanet: DeltaNet = DeltaNet()
    """The others, if linear."""
    window: Annotated[int, Ge(2)] = 512
    """Tokens that the others see, themselves included, if windowed; nothing else about them changes."""
    sinks: Annotated[int, Ge(0)] = 0
    """First tokens of the text that the others see as well, if windowed: where softmax goes that has nothing to read
    (arXiv 2309.17453). None where the layer had a window before."""
    normalise: bool = True
    """Scale-normalised fusion: each head's output to root mean square 1, times a learnable scalar; off, as it is."""
    eps: Annotated[float, Gt(0)] = 1e-6
    """Added to the mean square in the fusion."""

    @field_validator("full_heads")
    @classmethod
    def _sorted(cls, layers: tuple[tuple[int, ...] | None, ...]) -> tuple[tuple[int, ...] | None, ...]:
        for heads in layers:
            if heads is not None and (len(set(heads)) != len(heads) or min(heads, default=0) < 0):
                raise ValueError(f"expected different heads, counted from 0, in each layer; found {list(heads)}")
        return tuple(heads if heads is None else tuple(sorted(heads)) for heads in layers)

    @classmethod
    def by_layer(cls, config: PretrainedConfig, full_layers: Collection[int], **fields: Any) -> Self:
        """The layer-wise hybrid: all heads of the layers `full_layers` stay, none of the others."""
        everything = tuple(range(config.num_attention_heads))
        layers = range(config.num_hidden_layers)
        return cls(full_heads=tuple(everything if layer in full_layers else () for layer in layers), **fields)

    def check(self, base: PretrainedConfig, _earlier: Sequence[Graft]) -> None:
        """ValueError unless the heads are heads of `base`, whose attention must be causal."""
        if getattr(base, "is_heterogeneous", False):
            raise ValueError("the base gives single layers their own widths (`per_layer_config`); take an even model")
        num_layers, num_heads = base.num_hidden_layers, base.num_attention_heads
        if len(self.full_heads) != num_layers:
            raise ValueError(f"full_heads has {len(self.full_heads)} layers, the model has {num_layers}")
        for layer, heads in enumerate(self.full_heads):
            if heads and heads[-1] >= num_heads:
                raise ValueError(f"full_heads of layer {layer} names head {heads[-1]}, the last is {num_heads - 1}")
        if getattr(base, "use_bidirectional_attention", False):
            raise ValueError("the base attends in both directions, linear heads only read what came before")

    def build(self, model: PreTrainedModel) -> None:
        """Put hybrid layers in place of the attention layers."""
        for index, layer in enumerate(decoder_layers(model)):
            heads = self.full_heads[index]
            if heads is not None:
                layer.self_attn = HybridAttention(layer.self_attn, heads, self)
        self._mark(model)

    def convert(self, model: PreTrainedModel, sources: Sources) -> None:
        """Hybrid layers with the weights of the attention layers; gains from `sources.calibration`, or 1 without."""
        rms = head_rms(model, sources.calibration) if sources.calibration and self.normalise else {}
        for index, layer in enumerate(decoder_layers(model)):
            if self.full_heads[index] is not None:
                layer.self_attn = self.convert_layer(layer.self_attn, rms.get(index))
        self._mark(model)

    def convert_layer(self, attention: Any, rms_H: Tensor | None = None) -> HybridAttention:
        """A hybrid layer with copies of the weights of the attention layer `attention`, which stays as it is.

        `o_proj` alone is shared. `rms_H` [H] starts the gains. ValueError when the graft leaves that layer alone.
        """
        heads = self.full_heads[attention.layer_idx]
        if heads is None:
            raise ValueError(f"the graft leaves layer {attention.layer_idx} as it is")
        with no_init_weights():
            mixer = HybridAttention(attention, heads, self)
        mixer.copy_weights(attention, rms_H)
        return mixer.train(attention.training)

    def identity(self, base: PretrainedConfig) -> Self:
        """Every head softmax attention, every switch as in the teacher."""
        everything = tuple(range(base.num_attention_heads))
        kept = tuple(heads if heads is None else everything for heads in self.full_heads)
        return self.model_copy(update={"full_heads": kept, "softmax": Softmax.teacher(), "normalise": False})

    def _mark(self, model: PreTrainedModel) -> None:
        """Tell `generate` that what linear heads have read cannot be taken back."""
        if any(mixer.linear is not None for mixer in mixers(model).values()):
            model._is_stateful = True
        model._can_compile_fullgraph = False


def mixers(model: PreTrainedModel) -> dict[int, HybridAttention]:
    """The hybrid layers of `model`, by the number of their layer."""
    layers = enumerate(decoder_layers(model))
    return {index: layer.self_attn for index, layer in layers if isinstance(layer.self_attn, HybridAttention)}
