"""`quantize.export_adapter`: a corrected model as a checkpoint and a LoRA that need none of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from stages.artifacts import Model
from stages.errors import UserError
from stages.stage import Context, Input, Output, Stage


class QuantizeExportAdapter(Stage):
    """Take a model of `quantize.glowq` apart: its codes as compressed-tensors, its corrections as a PEFT adapter.

    Plain `transformers` loads the result without its corrections; `PeftModel.from_pretrained(model, path + "/adapter")`
    adds them, with the same logits as the grafted model. Each linear of the adapter has a copy of the factor that it
    shared, so this is for compatibility: the grafted model is smaller and computes less.
    """

    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model)}
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model)}
    requires: ClassVar[Mapping[str, str]] = {"compressed_tensors": "quantize"}
    metrics = ("adapter_bytes", "bytes")

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model has corrections, and no structure of its own."""
        names = [graft["name"] for graft in inputs["model"].grafts]
        if names != ["quantised", "lowrank"]:
            found = f"the grafts {', '.join(names)}" if names else "no grafts"
            raise UserError(
                f"the model has {found}, expected quantised, lowrank",
                where="model",
                fix="give a model that quantize.glowq made of a standard one, with a rank above 0",
            )

    def run(self, context: Context) -> None:
        """Write the checkpoint and, inside it, the adapter."""
        from stages.quantize.adapter import export_adapter

        out = context.output("model")
        adapter_bytes = export_adapter(context.model("model").path, out)
        weights = sum(shard.stat().st_size for shard in out.glob("*.safetensors"))
        context.metrics(adapter_bytes=adapter_bytes, bytes=weights)
