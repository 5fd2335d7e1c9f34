"""The linear heads of a hybrid layer: Gated DeltaNet (arXiv 2412.06464) on the teacher's projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from grafts.arithmetic import widened
from grafts.hybrid.branch import HeadBranch, Teacher, like, output_gate
from grafts.hybrid.cache import HybridCacheLayer
from grafts.hybrid.delta_rule import gated_delta_rule
from grafts.hybrid.heads import real_tokens, unit_length
from grafts.hybrid.settings import DeltaNet


class DeltaNetBranch(HeadBranch):
    """Gated DeltaNet (arXiv 2412.06464) for some heads, keys and values repeated to one for each query head."""

    def __init__(self, attention: nn.Module, heads: Sequence[int], settings: DeltaNet) -> None:
        teacher, made = Teacher.of(attention), like(attention)
        super().__init__(attention, heads, [head // teacher.heads_per_group for head in heads])
        self.settings = settings
        width = len(heads) * teacher.head_dim
        self.a_proj = nn.Linear(teacher.hidden_size, len(heads), bias=False, **made)
        self.b_proj = nn.Linear(teacher.hidden_size, len(heads), bias=False, **made)
        self.A_log = nn.Parameter(torch.empty(len(heads), **made))
        self.dt_bias = nn.Parameter(torch.empty(len(heads), **made))
        channels = 3 * width
        self.conv = (
            nn.Conv1d(channels, channels, settings.conv, groups=channels, bias=False, **made) if settings.conv else None
        )
        self.output_norm = nn.Parameter(torch.empty(teacher.head_dim, **made)) if settings.output_norm else None
        self.gate_proj = output_gate(attention, len(heads)) if settings.output_gate else None
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """New parameters where they change least: slow forgetting, β = ½ for every token, an identity convolution."""
        slow, fast = self.settings.forgetting
        rates = torch.logspace(0, 1, len(self.heads), base=fast / slow, dtype=torch.float64) * slow
        self.dt_bias.copy_(torch.log(torch.expm1(rates)))
        for tensor in (self.A_log, self.a_proj.weight, self.b_proj.weight):
            tensor.zero_()
        if self.conv is not None:
            self.conv.weight.zero_()[..., -1] = 1
        if self.output_norm is not None:
            self.output_norm.fill_(1)

    def forward(
        self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, held: HybridCacheLayer | None
    ) -> Tensor:
        """Outputs [B, T, H, D]; states are read from and left in `held`.

        Padding neither writes nor decays. The short convolution sees zeros there: exact for padding on the left.
        """
        real_BT = real_tokens(mask, x_BTC.shape[1])
        q, k, v = self._queries_keys_values(x_BTC, rotary, real_BT, held)
        g, beta = self._gates(x_BTC)
        if real_BT is not None:
            g, beta = g * real_BT[..., None], beta * real_BT[..., None]
        output, state = gated_delta_rule(q, k, v, g, beta, held.recurrent_state if held else None)
        if held is not None:
            held.recurrent_state = state
        if self.output_norm is not None:
            output = nn.functional.rms_norm(output, output.shape[-1:], self.output_norm, eps=1e-6)
        return output if self.gate_proj is None else output * torch.sigmoid(self.teacher.heads(x_BTC, self.gate_proj))

    def _queries_keys_values(
        self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor], real_BT: Tensor | None, held: HybridCacheLayer | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        projected = torch.cat([self.q_proj(x_BTC), self.k_proj(x_BTC), self.v_proj(x_BTC)], dim=-1)
        if self.conv is not None:
            heard = projected if real_BT is None else projected * real_BT[..., None]
            projected = _convolve(self.conv, heard, held)
        q, k, v = (part.unflatten(-1, (-1, self.teacher.head_dim)) for part in projected.chunk(3, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.settings.rope:
            q, k = apply_rotary_pos_emb(q, k, *rotary, unsqueeze_dim=2)
        return unit_length(q), unit_length(k), v

    def _gates(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """Log-decay g ≤ 0 and writing strength β [B, T, H], in float32 (float64 in a float64 model)."""
        rate = nn.functional.softplus(widened(self.a_proj(x_BTC)) + widened(self.dt_bias))
        strength = torch.sigmoid(widened(self.b_proj(x_BTC))) * (2 if self.settings.negative_eigenvalues else 1)
        return -widened(self.A_log).exp() * rate, strength


def _convolve(conv: nn.Conv1d, x_BTC: Tensor, held: HybridCacheLayer | None) -> Tensor:
    """A short causal convolution over each channel, going on from the inputs that `held` kept.

    As a sum of shifted products: on a CPU twice as fast as `conv1d` over a text, and several times for one token.
    """
    size, num_tokens = conv.kernel_size[0], x_BTC.shape[1]
    past = held.conv_state if held is not None else None
    padded = nn.functional.pad(x_BTC, (0, 0, size - 1, 0)) if past is None else torch.cat([past, x_BTC], dim=1)
    if held is not None:
        held.conv_state = padded[:, num_tokens:].clone()
    taps_KC = conv.weight[:, 0].T.contiguous()  # or each product is a strided one
    output = padded[:, :num_tokens] * taps_KC[0]
    for shift in range(1, size):
        output = torch.addcmul(output, padded[:, shift : shift + num_tokens], taps_KC[shift])
    return output
