"""A mixture from model directories to a model directory, without any model in memory: one tensor at a time.

What is held is one tensor of one source and what is made of it, or a few million elements of each source where they are
averaged, whatever the number of experts. The bytes are those of `apply` and `save_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from grafts.bases import base_class
from grafts.config import GraftedConfig
from grafts.experts.graft import Experts
from grafts.experts.shards import Entry, write_shards
from grafts.experts.standard import standard_config, standard_name
from grafts.experts.tensors import Maker
from grafts.loader import copy_tokenizer, strip_config
from grafts.model import GraftedForCausalLM, grafted_class

SHARD_BYTES: Final = 5_000_000_000
INCIDENTAL: Final = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"})
"""Fields of a config that may differ between models that compute alike."""


@dataclass(frozen=True)
class Built:
    """What `build_mixture` wrote."""

    class_name: str
    """The class that its `config.json` names."""
    num_parameters: int
    num_active: int
    """Parameters that a token goes through."""
    giver: tuple[int, ...]
    """The source of each whole expert."""


def build_mixture(
    sources: Sequence[Path],
    graft: Experts,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[float, float, str], None] = lambda *_: None,
) -> Built:
    """Write `graft` on the model directories `sources`, the seed first, into `out`, with the seed's tokenizer.

    It is saved as a standard class where it is one. Tensors are stored in the seed's type. ValueError, before any
    weight is read, when the configs differ, the graft does not fit them, or the tensors of a source are not those that
    its config tells.
    """
    graft.check_sources(len(sources))
    base, earlier = _one_config(sources)
    config = GraftedConfig(base, (*earlier, graft))
    standard = standard_config(base, earlier, graft)
    shapes = _shapes(config)
    checkpoints = [Checkpoint(source) for source in sources]
    dense = _shapes(GraftedConfig(base, earlier))
    for checkpoint in checkpoints:
        checkpoint.require(dense)
    maker = Maker(graft, len(sources), Directories(checkpoints))
    dtype = _dtype(base)
    entries = [
        Entry(
            standard_name(standard, name) if standard else name,
            tuple(shape),
            dtype,
            lambda name=name, shape=shape: maker.make(name, shape),
        )
        for name, shape in shapes.items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    total, done = sum(entry.num_bytes for entry in entries), 0
    for entry in write_shards(out, entries, shard_bytes):
        done += entry.num_bytes
        progress(done, total, "bytes")
    named = standard or config
    named.architectures = named.architectures or [grafted_class(base.model_type).__name__]
    named.save_pretrained(out)
    strip_config(out / "config.json")
    copy_tokenizer(sources[0], out)
    counts = {name: shape.numel() for name, shape in shapes.items()}
    return Built(
        named.architectures[0],
        sum(counts.values()),
        sum(_active(name, count, graft) for name, count in counts.items()),
        tuple(maker.giver(expert) for expert in range(graft.num_experts)),
    )


@dataclass
class Checkpoint:
    """The safetensors of a model directory, opened file by file; nothing of them stays in memory."""

    path: Path
    _place: dict[str, str] = field(default_factory=dict)
    _shapes: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in sorted(self.path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                self._place.update(dict.fromkeys(opened.keys(), file.name))
                self._shapes.update({name: opened.get_slice(name).get_shape() for name in opened.keys()})  # noqa: SIM118
        if not self._place:
            raise ValueError(f"{self.path} has no *.safetensors weights; pickled weights are never read")

    def require(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """ValueError unless the directory has these tensors in these shapes; it may have more."""
        for name, shape in shapes.items():
            if name not in self._place:
                raise ValueError(f"the weights in {self.path} lack {name}: load the model and save it again first")
            if self._shapes[name] != list(shape):
                raise ValueError(
                    f"the weights in {self.path} have {name} of shape {self._shapes[name]}, its config.json says "
                    f"{list(shape)}: the two are not of one model, save it again first"
                )

    def rows(self, name: str, start: int, stop: int | None) -> Tensor:
        """Rows of the tensor `name`."""
        with safe_open(self.path / self._place[name], framework="pt") as opened:
            return opened.get_slice(name)[start:stop] if self._shapes[name] else opened.get_tensor(name)


@dataclass(frozen=True)
class Directories:
    """The `Reader` of checkpoints."""

    checkpoints: Sequence[Checkpoint]

    def read(self, source: int, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Reader.read`."""
        return self.checkpoints[source].rows(name, start, stop)


def _one_config(sources: Sequence[Path]) -> tuple[PretrainedConfig, tuple[Any, ...]]:
    """The config that all sources have, and the grafts on it; ValueError naming the first difference."""
    configs = [AutoConfig.from_pretrained(source, local_files_only=True) for source in sources]
    for config in configs:
        base_class(config.base.model_type if isinstance(config, GraftedConfig) else config.model_type)
    fields = [_structure(config) for config in configs]
    for source, found in zip(sources[1:], fields[1:], strict=True):
        for name in sorted({*fields[0], *found}):
            if fields[0].get(name) != found.get(name):
                raise ValueError(
                    f"{sources[0]} has {name} {fields[0].get(name)!r}, {source} has {found.get(name)!r}: "
                    "experts come from models of one architecture"
                )
    first = configs[0]
    return (first.base, first.grafts) if isinstance(first, GraftedConfig) else (first, ())


def _structure(config: PretrainedConfig) -> dict[str, Any]:
    """What decides what the weights compute: the fields that the class of the config knows, and the grafts."""
    base, laid = (config.base, config.grafts) if isinstance(config, GraftedConfig) else (config, ())
    content, known = base.to_dict(), type(base)().to_dict()
    fields = {name: content.get(name) for name in known if name not in INCIDENTAL}
    return {**fields, "model_type": base.model_type, "grafts": [graft.to_dict() for graft in laid]}


def _shapes(config: GraftedConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of the checkpoint, by name; tied ones once."""
    with torch.device("meta"), no_init_weights():
        model = GraftedForCausalLM(config)
    tied = set(model.all_tied_weights_keys)
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def _dtype(base: PretrainedConfig) -> torch.dtype:
    dtype = base.dtype or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _active(name: str, count: int, graft: Experts) -> float:
    """Parameters of the tensor `name` that a token goes through."""
    return count * graft.top_k // graft.num_experts if ".mlp.experts." in name else count
