"""`source.model`: bring a pretrained model into the pipeline as safetensors, with its tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from stages.artifacts import Model, Report, write_report
from stages.errors import UserError, listing
from stages.source.generated import GENERATED_MODEL, is_generated
from stages.source.locate import PICKLED, HubReference, hub_reference, locate
from stages.stage import EXECUTION, Context, Output, Parameters, Source, Stage


class SourceModelParams(Parameters):
    """Which model, and how to store it."""

    model: Annotated[str, EXECUTION]
    """`package:NAME` or `package:NAME/sub/path` (a model shipped in an installed package), `hub:ORG/NAME@REVISION`
    (a commit or a tag), a local directory or .gguf file, which counts by its content wherever it lies, or
    `generated:llama`, a random model of two narrow layers to try a pipeline with."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type to store floating weights in, those of a GGUF once dequantised. A checkpoint whose config says that it is
    quantised keeps its own."""
    trust_remote_code: bool = False
    """Accept a model whose architecture is code in its own directory. The code is copied here, not run."""

    def smoke(self) -> Self:
        """A generated model of two layers."""
        return self.replaced(model=GENERATED_MODEL)


class SourceModel(Stage):
    """Read a pretrained causal language model from an installed package, a hub or local files.

    Writes safetensors, in bfloat16 unless told otherwise, the tokenizer and the chat template, so that plain
    `transformers` loads it. GGUF is dequantised once. Pickled weights are never read. The report names the source and
    the licence it declares. A sentence encoder, as sentence-transformers saves it, comes with its pooling
    (for `agent.index`).
    """

    Params = SourceModelParams
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    metrics = ("parameters", "bytes")
    params: SourceModelParams

    def sources(self) -> Mapping[str, Source]:
        """The model's file or directory, or the hub reference as written."""
        origin = self._origin()
        return {"model": origin if isinstance(origin, Path) else str(origin)}

    def preflight(self) -> None:
        """Check that the source is there, holds weights that are not pickled, and that a GGUF can be read."""
        origin = self._origin()
        if isinstance(origin, Path) and origin.suffix == ".gguf":
            missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
            if missing:
                raise UserError(f"{origin.name} needs {' and '.join(missing)}", fix="pip install 'regraft[gguf]'")

    def run(self, context: Context) -> None:
        """Convert the source into output `model`."""
        from stages.source.checkpoint import convert_directory, convert_gguf
        from stages.source.licence import model_licence

        origin, out = self._origin(), context.output("model")
        folder = self._fetch(origin, context.scratch)
        if folder.suffix == ".gguf":
            counts = convert_gguf(folder, out, self.params.dtype)
        else:
            trusted = self.params.trust_remote_code
            counts = convert_directory(
                folder, out, self.params.dtype, trust_remote_code=trusted, progress=context.progress
            )
        licence = model_licence(self.params.model, folder)
        context.say(
            f"{counts.num_parameters:,} parameters, {counts.num_bytes:,} bytes, licence {licence or 'not declared'}"
        )
        metrics = {"parameters": counts.num_parameters, "bytes": counts.num_bytes}
        context.metrics(**metrics)
        details = {"source": self._source_name(origin), "licence": licence, "dtype": self.params.dtype}
        write_report(context.output("report"), "Source model", metrics, details)

    def _origin(self) -> Path | HubReference | str:
        if is_generated(self.params.model, GENERATED_MODEL):
            return GENERATED_MODEL
        if self.params.model.startswith("hub:"):
            return hub_reference(self.params.model)
        return model_path(locate(self.params.model))

    def _fetch(self, origin: Path | HubReference | str, scratch: Path) -> Path:
        if isinstance(origin, Path):
            return origin
        if isinstance(origin, str):
            from stages.source.generated import generated_model

            return generated_model(scratch / "generated")
        from stages.source.hub import download_model

        return model_path(download_model(origin, with_code=self.params.trust_remote_code))

    def _source_name(self, origin: Path | HubReference | str) -> str:
        """How the report names the source: as pinned, or by file name, since a local path is not part of the result."""
        pinned = self.params.model.startswith(("hub:", "package:", "generated:"))
        return self.params.model if pinned else Path(str(origin)).name


def model_path(path: Path) -> Path:
    """The model in `path`: a .gguf file, a directory with safetensors, or the only one of those below it.

    Raises UserError for pickled weights, for no model, and for several.
    """
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise UserError(f"{path} is no model directory and no .gguf file", fix="name the directory that holds it")
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return path
    found = sorted(path.rglob("*.gguf")) + [file.parent for file in sorted(path.rglob("config.json"))]
    found = [model for model in found if model.suffix == ".gguf" or any(model.glob("*.safetensors"))]
    if len(found) == 1:
        return found[0]
    if found:
        names = [model.relative_to(path).as_posix() for model in found]
        raise UserError(f"{path} holds {len(found)} models: {listing(names)}", fix="name one of them, with its path")
    raise _no_model(path)


def _no_model(path: Path) -> UserError:
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
    if pickled:
        return UserError(
            f"{path} has only pickled weights ({listing(pickled)}), which can run code when they are read",
            fix="use a revision with safetensors, or convert it once, on a machine you can lose, with "
            "`AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)`",
        )
    names = sorted(file.name for file in path.iterdir())
    return UserError(
        f"{path} holds no model: expected config.json with *.safetensors, or a .gguf file",
        fix=f"it holds {listing(names)}",
    )
