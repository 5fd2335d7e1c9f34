"""Turning what a source holds into a model directory: safetensors copied shard by shard, GGUF dequantised once.

A safetensors checkpoint is never built as a model: its tensors keep their names and their values, cast to the wanted
type. So nothing of its code runs here, and memory holds one shard.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from grafts.config import GraftedConfig
from grafts.loader import copy_tokenizer, load_gguf, save_model, save_tokenizer
from stages.artifacts import write_json
from stages.errors import UserError
from stages.source.locate import nearest
from stages.source.weights import INDEX, WHOLE, weight_files
from stages.stage import Progress

MODULES: Final = "modules.json"
"""Of sentence-transformers: the steps from a text to its vector."""
DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Counts:
    """What the files of a checkpoint hold: tied tensors count as often as they are stored, packed ones as packed."""

    num_parameters: int
    num_bytes: int


def convert_gguf(file: Path, directory: Path, dtype: str) -> Counts:
    """Write the model in the GGUF `file`, with its tokenizer and chat template, into `directory`."""
    try:
        model = load_gguf(file, dtype=DTYPES[dtype])
    except ValueError as error:
        raise UserError(str(error), fix="use a GGUF that transformers reads, or the model's safetensors") from error
    save_model(model, directory, tokenizer_from=None)
    save_tokenizer(file, directory)
    return count(directory)


def convert_directory(
    source: Path, directory: Path, dtype: str, *, trust_remote_code: bool, progress: Progress
) -> Counts:
    """Write the safetensors model in `source` into `directory`, its floating tensors cast to `dtype`.

    A checkpoint that is quantised already keeps its types: its scales belong to its codes. Raises UserError for an
    architecture that plain `transformers` lacks, unless its code is trusted, which copies the code without running it.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _require_known_architecture(source, config, trust_remote_code)
    wanted = None if "quantization_config" in config else DTYPES[dtype]
    shards = weight_files(source)
    for done, shard in enumerate(shards):
        progress(done, len(shards), "shards")
        try:
            _convert_shard(shard, directory / shard.name, wanted)
        except SafetensorError as error:
            raise UserError(f"{shard} is damaged: {error}", fix="fetch the model again") from error
    _write_config(config, directory, dtype if wanted else None)
    _write_index(source, directory)
    copy_tokenizer(source, directory)
    _copy_modules(source, directory)
    if trust_remote_code:
        for module in sorted(source.glob("*.py")):
            shutil.copyfile(module, directory / module.name)
    return count(directory)


def is_sentence_encoder(directory: Path) -> bool:
    """Whether sentence-transformers has saved the model: its vectors of texts are what it is for."""
    return (directory / MODULES).is_file()


def count(directory: Path) -> Counts:
    """Parameters and bytes of the safetensors model in `directory`, from the headers of its shards alone."""
    num_parameters, shards = 0, weight_files(directory)
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                num_parameters += torch.Size(tensors.get_slice(name).get_shape()).numel()
    return Counts(num_parameters, sum(shard.stat().st_size for shard in shards))


def _convert_shard(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    with safe_open(source, framework="pt") as tensors:
        converted = {}
        for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
            tensor = tensors.get_tensor(name)
            converted[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    save_file(converted, target, metadata={"format": "pt"})
    target.chmod(0o644)


def _write_config(config: dict[str, Any], directory: Path, dtype: str | None) -> None:
    config = {key: value for key, value in config.items() if key not in ("_name_or_path", "_model_name_or_path")}
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    write_json(directory / "config.json", config)


def _write_index(source: Path, directory: Path) -> None:
    """The index of the shards, with the sizes they have now; a single shard has none."""
    file = source / INDEX
    if file.exists() and not (source / WHOLE).exists():
        index = json.loads(file.read_text(encoding="utf-8"))
        counted = count(directory)
        index["metadata"] = {"total_size": counted.num_bytes, "total_parameters": counted.num_parameters}
        write_json(directory / file.name, index)


def _copy_modules(source: Path, directory: Path) -> None:
    """Copy what makes a sentence encoder of the model, as sentence-transformers saves it: pooling and what follows."""
    if not is_sentence_encoder(source):
        return
    for name in (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    for module in sorted(source.glob("[0-9]*_*")):
        for file in sorted(each for each in module.iterdir() if each.suffix in (".json", ".safetensors")):
            (directory / module.name).mkdir(exist_ok=True)
            shutil.copyfile(file, directory / module.name / file.name)


def _require_known_architecture(source: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    model_type = str(config.get("model_type", ""))
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, GraftedConfig.model_type}
    if is_sentence_encoder(source):
        known |= MODEL_MAPPING_NAMES.keys()
    if model_type in known or (trust_remote_code and "auto_map" in config):
        return
    if "auto_map" in config:
        raise UserError(
            f"{source} is of type {model_type!r}, which needs code of its own: {sorted(config['auto_map'].values())}",
            fix="read that code; if you trust it, set trust_remote_code: true",
        )
    raise UserError(
        f"{source} is of type {model_type!r}, not a causal language model that transformers knows"
        f"{nearest(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}",
        fix="choose a causal language model, or upgrade transformers",
    )
