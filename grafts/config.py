"""The config of a grafted model: the config of its base, and the grafts put on it, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from transformers import PretrainedConfig

from grafts.bases import base_config
from grafts.graft import Graft
from grafts.order import check_grafts
from grafts.registry import parse_graft

_OWN: Final = frozenset({"base", "grafts", "architectures", "transformers_version", "model_type", "_name_or_path"})


class GraftedConfig(PretrainedConfig):
    """`base` plus `grafts`; every other attribute is read from and written to `base`.

    In `config.json`, `base` is the base's own config and `grafts` a list of `Graft.to_dict`. Making one checks that the
    base is supported and the grafts fit it and each other: ValueError with the reason otherwise. `overrides` are fields
    of a base given as a dict.
    """

    model_type = "regraft"

    def __init__(
        self,
        base: PretrainedConfig | dict[str, Any] | None = None,
        grafts: Sequence[Graft | dict[str, Any]] = (),
        *,
        architectures: list[str] | None = None,
        transformers_version: str | None = None,
        **overrides: Any,
    ) -> None:
        self.grafts = tuple(graft if isinstance(graft, Graft) else parse_graft(graft) for graft in grafts)
        self.architectures, self.transformers_version = architectures, transformers_version
        self._name_or_path = str(overrides.pop("name_or_path", ""))
        overrides.pop("model_type", None)
        given = {key: value for key, value in overrides.items() if value is not None}
        if isinstance(base, PretrainedConfig) and given:
            raise TypeError(f"{', '.join(sorted(given))}: set these on the base, which is a config already")
        self.base = base if isinstance(base, PretrainedConfig) else base_config({**(base or {}), **given})
        check_grafts(self.base, self.grafts)

    def __getattribute__(self, key: str) -> Any:
        read = super().__getattribute__
        if key in _OWN or key.startswith("__") or "base" not in read("__dict__"):
            return read(key)
        base = read("__dict__")["base"]
        if key in base.__dict__ or isinstance(getattr(type(base), key, None), property):
            return getattr(base, key)
        return read(key)

    def __getattr__(self, key: str) -> Any:
        if key in _OWN or key.startswith("__") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute '{key}'")
        return getattr(self.base, key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _OWN or "base" not in self.__dict__:
            object.__setattr__(self, key, value)
        else:
            setattr(self.base, key, value)

    def __delattr__(self, key: str) -> None:
        if key in _OWN:
            object.__delattr__(self, key)
        else:
            delattr(self.base, key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GraftedConfig) and self.to_dict() == other.to_dict()

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`: `GraftedConfig(**config.to_dict())` is equal to `config`."""
        base = self.base.to_diff_dict()
        base.pop("_name_or_path", None)
        fields = {
            "model_type": self.model_type,
            "transformers_version": base.pop("transformers_version", None),
            "dtype": base.get("dtype"),
            "base": base,
            "grafts": [graft.to_dict() for graft in self.grafts],
        }
        return {**fields, "architectures": self.architectures} if self.architectures else fields

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`, where every field of the base's own class is, whatever its default."""
        return self.to_dict()
