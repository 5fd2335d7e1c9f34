"""llmcompressor's GPTQ on the tensors of a file; runs in llmcompressor's environment, knows nothing of this project.

python peer_gptq.py INPUT.safetensors OUTPUT.safetensors: INPUT holds pairs `NAME.weight` and `NAME.hessian`, and its
metadata `bits`, `group_size` and `damping`; OUTPUT gets each weight as rounded, and `NAME.cpu_seconds`.
"""

from __future__ import annotations

import sys
import time

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight  # type: ignore[import-not-found]
from safetensors import safe_open
from safetensors.torch import save_file


def main(source: str, target: str) -> None:
    torch.set_num_threads(1)
    rounded = {}
    with safe_open(source, "pt") as tensors:
        told = tensors.metadata()
        group = int(told["group_size"])
        arguments = QuantizationArgs(
            num_bits=int(told["bits"]), symmetric=False, strategy="group", group_size=group, actorder="weight"
        )
        for name in sorted(key.removesuffix(".weight") for key in tensors.keys() if key.endswith(".weight")):  # noqa: SIM118
            weight, hessian = tensors.get_tensor(f"{name}.weight"), tensors.get_tensor(f"{name}.hessian")
            groups = weight.unflatten(1, (-1, group))
            scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
            began = time.process_time()
            rounded[name], _, fell_back = quantize_weight(
                weight[None].clone(), hessian[None].float(), scale[None], zero_point[None], None, arguments,
                percdamp=float(told["damping"]),
            )  # fmt: skip
            rounded[f"{name}.cpu_seconds"] = torch.tensor(time.process_time() - began)
            assert not fell_back.any(), name
            rounded[name] = rounded[name][0].contiguous()
    save_file(rounded, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
