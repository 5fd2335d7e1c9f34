"""Integer codes in int32 words, in the layout of the `pack-quantized` format of compressed-tensors.

Codes lie side by side without gaps, so those of 3 bits may cross from one word into the next: compressed-tensors reads
that from version 0.18 on. For 2, 4 and 8 bits the layout is the same in every version.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from grafts.rtn import Bits, Quantised, code_range

WORD_BITS = 32


def pack(codes_RC: Tensor, bits: Bits) -> Tensor:
    """Int8 codes [R, C] as int32 words [R, ceil(C * bits / 32)]: offset to unsigned, first code in the lowest bits."""
    if WORD_BITS % bits:
        return pack_crossing(codes_RC, bits)
    padded_RC = functional.pad(codes_RC, (0, -codes_RC.shape[-1] % (WORD_BITS // bits)), value=code_range(bits)[0])
    unsigned_RC = padded_RC.to(torch.int8).contiguous().view(torch.uint8) + 2 ** (bits - 1)
    unsigned_RNB = unsigned_RC.unflatten(-1, (-1, 8 // bits))
    bytes_RN = unsigned_RNB[..., 0].clone()
    for place in range(1, 8 // bits):
        bytes_RN |= unsigned_RNB[..., place] << place * bits
    return bytes_RN.view(torch.int32)


def pack_crossing(codes_RC: Tensor, bits: Bits) -> Tensor:
    """`pack` for bits of any number, also where codes cross from one word into the next."""
    num_columns = codes_RC.shape[-1]
    unsigned = codes_RC.long() - code_range(bits)[0]
    blocks_RNC = functional.pad(unsigned, (0, -num_columns % WORD_BITS)).unflatten(-1, (-1, WORD_BITS))
    words_RNB = blocks_RNC.new_zeros(*blocks_RNC.shape[:-1], bits)
    for code, word, shift in _places(bits):
        part = blocks_RNC[..., code]
        words_RNB[..., word] |= part << shift if shift >= 0 else part >> -shift
    words_RW = (words_RNB & (2**WORD_BITS - 1)).flatten(-2)
    return words_RW[:, : -(-num_columns * bits // WORD_BITS)].to(torch.int32).contiguous()


def unpack(words_RW: Tensor, bits: Bits, num_columns: int) -> Tensor:
    """Inverse of `pack`: int8 codes [R, num_columns]."""
    if WORD_BITS % bits:
        return unpack_crossing(words_RW, bits, num_columns)
    shifts_C = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words_RW.device)
    codes_RC = ((words_RW[..., None] >> shifts_C) & (2**bits - 1)).flatten(-2)[:, :num_columns]
    return (codes_RC + code_range(bits)[0]).to(torch.int8)


def unpack_crossing(words_RW: Tensor, bits: Bits, num_columns: int) -> Tensor:
    """`unpack` for bits of any number, also where codes cross from one word into the next."""
    unsigned = words_RW.long() & (2**WORD_BITS - 1)
    blocks_RNB = functional.pad(unsigned, (0, -words_RW.shape[-1] % bits)).unflatten(-1, (-1, bits))
    codes_RNC = blocks_RNB.new_zeros(*blocks_RNB.shape[:-1], WORD_BITS)
    for code, word, shift in _places(bits):
        part = blocks_RNB[..., word]
        codes_RNC[..., code] |= part >> shift if shift >= 0 else part << -shift
    codes_RC = (codes_RNC & (2**bits - 1)).flatten(-2)[:, :num_columns]
    return (codes_RC + code_range(bits)[0]).to(torch.int8)


def packed_tensors(quantised: Quantised, bits: Bits) -> dict[str, Tensor]:
    """What a `pack-quantized` checkpoint stores in place of a linear's `weight`, by the name after the layer's."""
    tensors = {
        "weight_packed": pack(quantised.codes, bits),
        "weight_scale": quantised.scale,
        "weight_shape": torch.tensor(quantised.codes.shape),
    }
    if quantised.zero_point is not None:
        tensors["weight_zero_point"] = pack(quantised.zero_point.T, bits).T.contiguous()
    return tensors


def packed_bytes(
    num_outputs: int, num_inputs: int, bits: Bits, group_size: int, *, symmetric: bool, scale_bytes: int = 2
) -> int:
    """Bytes of the codes, scales and zero points of a weight [O, I], as `packed_tensors` gives them."""
    num_groups = -(-num_inputs // group_size)
    codes = 4 * num_outputs * -(-num_inputs * bits // WORD_BITS)
    zeros = 0 if symmetric else 4 * num_groups * -(-num_outputs * bits // WORD_BITS)
    return codes + num_outputs * num_groups * scale_bytes + zeros


def _places(bits: Bits) -> Iterator[tuple[int, int, int]]:
    """Where each of 32 codes lies in `bits` words: (code, word, shift to the left); those that cross lie in two."""
    for code in range(WORD_BITS):
        word, shift = divmod(code * bits, WORD_BITS)
        yield code, word, shift
        if shift + bits > WORD_BITS:
            yield code, word + 1, shift - WORD_BITS
