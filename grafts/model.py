"""A model with grafts: its base class of `transformers` with other parts inside, and nothing around it.

`GraftedForCausalLM` over Llama is a `LlamaForCausalLM`: the same forward, the same names of weights, `generate`,
gradient checkpointing and embeddings. Making one builds the base and replays the grafts, then weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Self

from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from grafts.bases import BASES, base_class
from grafts.config import GraftedConfig
from grafts.graft import Graft, Sources

_WHERE: Final = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""What `from_pretrained` has to say about where a directory is."""


class GraftedForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model with grafts, for `AutoModelForCausalLM`; instances are of a subclass for each base."""

    config_class = GraftedConfig
    _shared: dict[str, str]

    def __new__(cls, config: GraftedConfig | None = None, *_: Any, **__: Any) -> Self:
        """An instance of the class over the config's base."""
        is_open = cls is GraftedForCausalLM and config is not None
        return object.__new__(grafted_class(config.base.model_type) if is_open else cls)  # type: ignore[return-value]

    def __init__(self, config: GraftedConfig) -> None:
        super().__init__(config.base)
        self._shared = {}
        self.config = config
        for graft in config.grafts:
            graft.build(self)
        self.settle()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As in `transformers`."""
        if cls is not GraftedForCausalLM:
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        if not isinstance(config, PretrainedConfig):
            where = {key: kwargs[key] for key in _WHERE if key in kwargs}
            config = GraftedConfig.from_pretrained(config or pretrained_model_name_or_path, **where)
        over = grafted_class(config.base.model_type)
        return over.from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: GraftedConfig, **kwargs: Any) -> Any:
        if cls is not GraftedForCausalLM:
            return super()._from_config(config, **kwargs)
        return grafted_class(config.base.model_type)._from_config(config, **kwargs)

    def share(self, name: str, source: str) -> None:
        """From `settle` on, the parameter `name` is the parameter `source`; the checkpoint holds it once."""
        self._shared[name] = source

    def settle(self) -> None:
        """Bring the bookkeeping of `transformers` up to date with the modules; `apply` and loading do."""
        ties = dict(type(self)._tied_weights_keys or {})
        self._tied_weights_keys = {**ties, **self._shared}
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        self.tie_weights(recompute_mapping=False)

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """As in `transformers`, which looks for parameters alone: buffers, as codes are, need no initial values."""
        shared, buffers = self.all_tied_weights_keys, dict(self.named_buffers(remove_duplicate=False))
        self.all_tied_weights_keys = {name: source for name, source in shared.items() if name not in buffers}
        super().mark_tied_weights_as_initialized(loading_info)
        self.all_tied_weights_keys = shared

    def _adjust_bias(self, output_embeddings: nn.Module, input_embeddings: Any) -> None:
        """As in `transformers`, for a head whose vocabulary grew; a linear that shares codes has no weight to grow."""
        if "weight" in output_embeddings._parameters:
            super()._adjust_bias(output_embeddings, input_embeddings)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Target → source of every shared parameter: the embeddings' if the config ties them, and the grafts'."""
        shared = self.__dict__.get("_shared", {})
        tied = super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return {**{name: source for name, source in tied.items() if name not in shared}, **shared}


@cache
def grafted_class(model_type: str) -> type[GraftedForCausalLM]:
    """The class of grafted models over `model_type`; ValueError listing the supported ones when there is none."""
    base = base_class(model_type)
    fields = {"config_class": GraftedConfig, "__module__": __name__, "__doc__": f"`{base.__name__}` with grafts."}
    return type(_class_name(model_type), (GraftedForCausalLM, base), fields)


def apply(
    model: PreTrainedModel,
    grafts: Sequence[Graft],
    *,
    calibration: Sequence[Tensor] = (),
    models: Sequence[PreTrainedModel] = (),
    seed: int = 0,
) -> GraftedForCausalLM:
    """Put `grafts` on `model`, in order, after those it has; it is changed in place and returned as the grafted class.

    `calibration`, `models` and `seed` are `Sources`. No weight is held twice. ValueError, before anything has
    changed, when the base is not supported or a graft does not fit it or the grafts before it.
    """
    earlier = model.config.grafts if isinstance(model, GraftedForCausalLM) else ()
    base = model.config.base if isinstance(model, GraftedForCausalLM) else model.config
    kind = grafted_class(base.model_type)
    if not isinstance(model, (kind, base_class(base.model_type))):
        raise ValueError(f"grafts go on a {base_class(base.model_type).__name__}, not on a {type(model).__name__}")
    config = GraftedConfig(base, (*earlier, *grafts))
    if getattr(base, "quantization_config", None) and any(graft.place != "adapters" for graft in grafts):
        raise ValueError("the model is quantised, its linears hold no weights to reuse: graft first, quantise last")
    if not isinstance(model, kind):
        model.__class__, model._shared = kind, {}
    model.config = config
    for graft in grafts:
        graft.convert(model, Sources(calibration, models, seed))
    model.settle()
    return model


def _class_name(model_type: str) -> str:
    return f"Grafted{BASES[model_type]}"


def __getattr__(name: str) -> Any:
    """The classes over each base by their names, so that pickled models find them."""
    for model_type in BASES:
        if name == _class_name(model_type):
            return grafted_class(model_type)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
