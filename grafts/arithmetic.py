"""In which type a model computes: few CPUs have instructions for the half-precision types that weights are stored in.

Without them torch works a bfloat16 product out number by number, six times slower than one in float32 (measured on a
CPU with AVX2 alone); with them it is up to twice as fast. What computes for long asks here first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn

INSTRUCTIONS: Final = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""Any of which a CPU needs for products in a type, as torch names them."""


@cache
def computes_in(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether this machine has instructions for products in `dtype` on that type of device; a GPU out of sight has."""
    if device == "cuda" and dtype == torch.bfloat16 and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or dtype not in INSTRUCTIONS:
        return True
    found = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return any(found.get(name, False) for name in INSTRUCTIONS[dtype])


def computing_dtype(stored: torch.dtype, device: str = "cpu") -> torch.dtype:
    """`stored`, or float32 where the machine has no instructions for it."""
    return stored if computes_in(stored, device) else torch.float32


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where that is given: the precision of norms, gates, states and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """`x` in its `wide_dtype`."""
    return x.to(wide_dtype(x.dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, as configs and reports have it."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def computing(*models: nn.Module) -> Iterator[None]:
    """Raise `models` to the type they compute fastest in, for a while; their own tensors come back untouched.

    Only floating tensors of a type that `computing_dtype` replaces change, so that on most machines nothing does. The
    copies take twice the bytes. What is written to the weights meanwhile is lost. Codes times raised scales are not
    rounded to the stored type: such weights differ from the stored ones by a thousandth of themselves.
    """
    with _lending([each for each in _tensors(models) if not computes_in(each.dtype, each.device.type)], torch.float32):
        yield


@contextmanager
def in_float32(*models: nn.Module) -> Iterator[None]:
    """Let every floating tensor of `models` be float32 for a while."""
    with _lending([each for each in _tensors(models) if each.is_floating_point()], torch.float32):
        yield


@contextmanager
def storing(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let every floating tensor that a checkpoint of `model` holds have `dtype` for a while, as it is to be written.

    They come back in their own type with the values that were written, so that what is measured next is the same model.
    """
    held = {id(each): each for each in model.state_dict(keep_vars=True).values() if each.is_floating_point()}
    own = {name: each.dtype for name, each in held.items()}
    try:
        for each in held.values():
            each.data = each.data.to(dtype)
        yield
    finally:
        for name, each in held.items():
            each.data = each.data.to(own[name])


def raised(value: Any) -> Any:
    """`value` with every tensor in it, through tuples, lists and mappings, in the type to compute in."""
    return _each(value, lambda tensor: tensor.to(computing_dtype(tensor.dtype, tensor.device.type)))


def as_float32(value: Any) -> Any:
    """`value` with every floating tensor in it, through tuples, lists and mappings, in float32."""
    return _each(value, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    return type(value)(_each(item, change) for item in value) if type(value) in (tuple, list) else value


@contextmanager
def _lending(tensors: list[Tensor], dtype: torch.dtype) -> Iterator[None]:
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data


def _tensors(models: Sequence[nn.Module]) -> list[Tensor]:
    """Each parameter and buffer, shared ones once."""
    return list({id(each): each for model in models for each in (*model.parameters(), *model.buffers())}.values())
