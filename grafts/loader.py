"""Reading and writing model directories: the one way in and out of every stage that touches weights.

Reading is strict: a checkpoint that lacks a tensor of its architecture is refused, because `transformers` would fill
the gap with random numbers and go on. Writing is deterministic: the same weights give the same bytes in any directory.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from grafts.arithmetic import storing

LOAD_ERRORS: Final = (OSError, ValueError, RuntimeError, LookupError, ImportError, struct.error, SafetensorError)
"""What `transformers` lets through for files that are damaged, foreign or need a package that is not there."""

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What a model directory may hold beside its config and weights; the rest of `save_model`'s output is derived."""


def load_model(path: Path, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model in directory `path`, in eval mode, on the CPU, its floating weights in `dtype`.

    A checkpoint packed by compressed-tensors comes back dense: its linears hold the dequantised weights, so that every
    caller sees an ordinary model. Raises ValueError when the directory holds no config, no safetensors, a class this
    `transformers` does not know, or fewer tensors than the architecture has. A `.gguf` file goes to `load_gguf`.
    """
    if path.suffix == ".gguf":
        return load_gguf(path, dtype=dtype)
    _require_files(path)
    with quiet():
        config = _read_config(path, trust_remote_code)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except LOAD_ERRORS as error:
            raise ValueError(f"{path} does not load as a causal language model: {error}") from error
    _require_complete(path, info)
    return model.eval()


def load_gguf(file: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The model in the GGUF `file`, dequantised to plain linears in `dtype`; ValueError when it does not load."""
    with quiet():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        except LOAD_ERRORS as error:
            raise ValueError(f"{file} does not load as a causal language model: {error}") from error
    _require_complete(file, info)
    return model.eval()


def stored_dtype(path: Path) -> torch.dtype:
    """The type that the `config.json` in directory `path` says the weights have; float32 when it does not say."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, str(name))


def save_model(
    model: PreTrainedModel,
    directory: Path,
    *,
    tokenizer_from: Path | None,
    state_dict: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model` into `directory` as safetensors with its config, and the tokenizer files of `tokenizer_from`.

    `state_dict` replaces the model's own tensors (packed weights, say); `dtype` is that of the written tensors, the
    model's own without it; with it the model keeps the rounded values. Tied tensors are written once. Nothing of the
    machine enters the bytes: no time, and no path (`_name_or_path` is dropped from the config).
    """
    directory.mkdir(parents=True, exist_ok=True)
    with quiet(), storing(model, dtype) if dtype else nullcontext():
        # Fused experts that are split up again are not found beside packed tensors (transformers 5.23): tensors given
        # here keep the names that the model has.
        original = state_dict is None
        model.save_pretrained(directory, state_dict=state_dict, max_shard_size="5GB", save_original_format=original)
    strip_config(directory / "config.json")
    for shard in directory.glob("*.safetensors"):
        shard.chmod(0o644)  # safetensors writes 0600, which a shared store cannot serve
    if tokenizer_from is not None:
        copy_tokenizer(tokenizer_from, directory)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy the tokenizer, chat template and generation config files that `source` holds into `directory`."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, directory / templates.name, dirs_exist_ok=True)


def save_tokenizer(gguf_file: Path, directory: Path) -> None:
    """Write the tokenizer and chat template that a GGUF file carries into `directory`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer.save_pretrained(directory)
    strip_config(directory / "tokenizer_config.json")


def strip_config(file: Path) -> None:
    """Rewrite the config at `file` without where it came from, keys sorted."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "_model_name_or_path", "name_or_path", "is_local", "local_files_only"):
        config.pop(key, None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _require_files(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is not a model directory: it has no config.json")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"{path} has no *.safetensors weights; pickled weights are never read")


def _read_config(path: Path, trust_remote_code: bool) -> PretrainedConfig:
    """The config of `path`, told to dequantise packed weights while they load."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}/config.json names no known architecture: {error}") from error
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict) and quantization.get("quant_method") == "compressed-tensors":
        config.quantization_config = {**quantization, "dequantize": True}
    return config


def _require_complete(path: Path, info: dict[str, Any]) -> None:
    missing, mismatched = _names(info["missing_keys"]), _names(info["mismatched_keys"])
    if missing or mismatched:
        found = f"missing: {missing or 'none'}; of another shape: {mismatched or 'none'}"
        raise ValueError(f"the weights in {path} do not fill the architecture its config.json names; {found}")


def _names(keys: Iterable[object], limit: int = 5) -> str:
    names = sorted(str(key) for key in keys)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars from `transformers` while this lasts: stages report progress themselves."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
