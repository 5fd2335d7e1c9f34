"""The gated delta rule of Gated DeltaNet (arXiv 2412.06464), as pure functions.

With state S [K, V] of a head, gate g ≤ 0 and writing strength β, a token reads and writes

    S ← e^g S;   u = β (v − Sᵀk);   S ← S + k uᵀ;   o = Sᵀq / √K

`naive` does just that. `recurrent` does it for all heads at once, `chunked` solves for all the u of a chunk at once
(the WY form: one triangular system a chunk). `gated_delta_rule` picks among them, and the kernels of `fla` on CUDA.

Shapes, everywhere: q, k [B, T, H, K]; v [B, T, H, V]; g, β [B, T, H]; states [B, H, K, V]; output as v. The inner
arithmetic and the states are float32, or float64 when q is.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grafts.arithmetic import wide_dtype

CHUNK_SIZE = 64


class Read(NamedTuple):
    """What a pass over T tokens gives."""

    output: Tensor
    """[B, T, H, V] in the dtype of v"""
    state: Tensor
    """[B, H, K, V] after the last token"""


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None) -> Read:
    """The fastest form here for these tensors: one token recurrently, many in chunks, `fla`'s kernels on CUDA."""
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and (kernels := _fla()):
        kernel = kernels.fused_recurrent_gated_delta_rule if q.shape[1] == 1 else kernels.chunk_gated_delta_rule
        output, after = kernel(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True)
        return Read(output, after)
    with torch.autocast(q.device.type, enabled=False):  # states lose too much in bfloat16
        return (recurrent if q.shape[1] == 1 else chunked)(q, k, v, g, beta, state)


def naive(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None) -> Read:
    """The definition, a head and a token at a time: the reference of the other forms."""
    start = _start(q, v, state)
    wide = [x.to(start.dtype) for x in (q, k, v, g, beta)]
    rows = [
        [_naive_head(*(x[row, :, head] for x in wide), start[row, head]) for head in range(q.shape[2])]
        for row in range(q.shape[0])
    ]
    output = torch.stack([torch.stack([read.output for read in row], dim=1) for row in rows])
    return Read(output.to(v.dtype), torch.stack([torch.stack([read.state for read in row]) for row in rows]))


def _naive_head(q_TK: Tensor, k_TK: Tensor, v_TV: Tensor, g_T: Tensor, beta_T: Tensor, S_KV: Tensor) -> Read:
    outputs = []
    for q_K, k_K, v_V, g, beta in zip(q_TK, k_TK, v_TV, g_T, beta_T, strict=True):
        S_KV = g.exp() * S_KV
        u_V = beta * (v_V - S_KV.T @ k_K)
        S_KV = S_KV + torch.outer(k_K, u_V)
        outputs.append(S_KV.T @ q_K / q_K.shape[0] ** 0.5)
    return Read(torch.stack(outputs), S_KV)


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None) -> Read:
    """A token at a time for all heads: what decoding uses."""
    state = _start(q, v, state)
    q, k, wide_v, g, beta = (x.to(state.dtype) for x in (q, k, v, g[..., None], beta[..., None]))
    parts = (q * q.shape[-1] ** -0.5, k, wide_v, g.exp(), beta)
    steps = (part.transpose(1, 2).flatten(0, 1).split(1, dim=1) for part in parts)
    S, outputs = state.flatten(0, 1), []
    for q_1K, k_1K, v_1V, decay, strength in zip(*steps, strict=True):
        S = decay * S
        S = torch.baddbmm(S, k_1K.mT, strength * (v_1V - k_1K @ S))
        outputs.append(q_1K @ S)
    output = torch.cat(outputs, dim=1).unflatten(0, state.shape[:2]).transpose(1, 2)
    return Read(output.to(v.dtype), S.view_as(state))


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Read:
    """`chunk_size` tokens at a time, for any T: the tokens that fill up the last chunk neither write nor decay.

    With G the running sum of g in a chunk and S its starting state, the u of its tokens solve
    (I + tril(β K Kᵀ ⊙ e^{G_i − G_j}, −1)) U = β (V − e^G K S). The part without S is solved for all chunks together;
    only what depends on S is done in sequence, two products a chunk.
    """
    state, num_tokens = _start(q, v, state), q.shape[1]
    if num_tokens == 0:
        return Read(torch.zeros_like(v), state)
    size = min(chunk_size, num_tokens)
    q, k, wide_v, g, beta = (_chunks(x.to(state.dtype), size) for x in (q, k, v, g[..., None], beta[..., None]))
    total = g.cumsum(dim=-2)
    # Clamped, not masked, before exp: the upper triangle would overflow there, and its gradient be NaN.
    decay = (total - total.mT).clamp(max=0).exp().tril()
    kept, scale = total.exp(), q.shape[-1] ** -0.5
    system = beta * (k @ k.mT) * decay
    parts = (
        _solve(system, beta * wide_v),
        _solve(system, beta * kept * k),
        q * (kept * scale),
        (q @ k.mT) * (decay * scale),
        (k * (total[..., -1:, :] - total).exp()).mT,
        kept[..., -1:, :],
    )
    S, outputs = state.flatten(0, 1), []
    for fresh, stale, reads, within, writes, left in zip(*(part.unbind(1) for part in parts), strict=True):
        u = torch.baddbmm(fresh, stale, S, alpha=-1)
        outputs.append(torch.baddbmm(reads @ S, within, u))
        S = torch.baddbmm(left * S, writes, u)
    output = torch.cat(outputs, dim=1)[:, :num_tokens].unflatten(0, state.shape[:2])
    return Read(output.transpose(1, 2).to(v.dtype), S.view_as(state))


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    """X of (I + tril(lower, −1)) X = right."""
    return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)


def _start(q: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    """The state to start from, in the dtype that the arithmetic is done in."""
    dtype = wide_dtype(q.dtype)
    if state is not None:
        return state.to(dtype)
    return torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=dtype, device=q.device)


def _chunks(x: Tensor, size: int) -> Tensor:
    """[B, T, H, D] → [B·H, chunks, size, D], filled up with zeros: no writing strength, no decay."""
    missing = -x.shape[1] % size
    padded = torch.nn.functional.pad(x.transpose(1, 2), (0, 0, 0, missing))
    return padded.flatten(0, 1).unflatten(1, (-1, size)).contiguous()


@cache
def _fla() -> Any:
    """The kernels of `flash-linear-attention`, or None without it; asked for only where there is a GPU to run them."""
    return import_module("fla.ops.gated_delta_rule") if find_spec("fla") else None
