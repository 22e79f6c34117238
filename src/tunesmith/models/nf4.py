"""NF4: linear weights in 4 bits, as QLoRA trains on them (Dettmers et al. 2023, arXiv 2305.14314).

    w = code[q] * absmax of w's block                                        (section 3, equation 5)

`code` holds the 16 quantiles of a normal distribution scaled to [-1, 1]; a block is `block_size`
neighbours of a row-major weight. With double quantisation the blocks' absmax, less their mean, are
8-bit dynamic codes (Dettmers et al. 2022, arXiv 2110.02861) with one scale for 256 of them.

Codes, scales and the numbers made of them equal those of bitsandbytes 0.50 on a CPU bit for bit,
its rounding of a scale through a table of 65,536 steps included. Nothing here depends on the device.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from tunesmith.models.packed import PackedLinear

__all__ = ["NF4_CODE", "Nf4Linear", "dynamic_code", "read_tensor"]

NF4_CODE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 values of a code, from appendix E of the paper."""

SCALE_BLOCK = 256
"""Blocks that share one scale of their 8-bit absmax."""
CHUNK = 1 << 20
"""Weights that are quantised at a time: bounds the memory that loading takes beside the result."""
TILE = 1 << 17
"""Weights that are dequantised at a time: they stay in a processor's cache until they are scaled."""


def quantise_blocks(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes and block maxima of a weight whose size is a whole number of blocks.

    Returns (n / 2,) uint8 with the first of two codes in the upper half, and (n / block_size,) fp32.
    """
    code = torch.tensor(NF4_CODE, device=weight.device)
    bounds = (code[:-1] + code[1:]) / 2
    flat = weight.detach().reshape(-1)
    packed = torch.empty(flat.numel() // 2, dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(flat.numel() // block_size, device=flat.device)
    step = max(CHUNK // block_size, 1) * block_size
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step].float().view(-1, block_size)
        peak = part.abs().amax(1)
        scaled = (part * (1.0 / peak.clamp(min=1e-38))[:, None]).clamp_(-1, 1).view(-1)
        codes = torch.bucketize(scaled, bounds, out_int32=True).to(torch.uint8)
        end = start + scaled.numel()
        packed[start // 2 : end // 2] = (codes[::2] << 4) | codes[1::2]
        absmax[start // block_size : end // block_size] = peak
    return packed, absmax


@cache
def dynamic_code() -> Tensor:
    """(256,) fp32, rising: the signed dynamic data type of arXiv 2110.02861, section 2.2."""
    values: list[float] = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2.0
        values += ((10 ** (exponent - 6)) * middles).tolist()
        values += (-(10 ** (exponent - 6)) * middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


@cache
def _nearest_code() -> Tensor:
    """(65536,) uint8: the dynamic code nearest to each of as many even steps from -1 to 1."""
    code = dynamic_code()
    steps = (torch.arange(65_536, dtype=torch.float64) / 65_535 * 2 - 1).float()
    return torch.searchsorted((code[:-1] + code[1:]) / 2, steps).to(torch.uint8)


def quantise_scales(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantisation: (blocks,) uint8 codes, (blocks / 256,) fp32 scales, and the mean."""
    mean = absmax.mean()
    centred = torch.nn.functional.pad(absmax - mean, (0, -absmax.numel() % SCALE_BLOCK))
    centred = centred.view(-1, SCALE_BLOCK)
    scales = centred.abs().amax(1)
    # Where all maxima are equal the scale is 0, and so is what any code stands for: the first one.
    unit = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    steps = ((centred * unit[:, None] + 1) * 0.5 * 65_535 + 0.5).to(torch.int64)
    codes = _nearest_code().to(absmax.device)[steps.clamp_(0, 65_535)]
    codes[scales == 0] = 0
    return codes.view(-1)[: absmax.numel()], scales, mean


@cache
def _pairs(device: torch.device) -> Tensor:
    """(256,) int64: the two fp32 values of a byte, side by side in one word."""
    byte, code = torch.arange(256), torch.tensor(NF4_CODE)
    pairs = torch.stack([code[byte >> 4], code[byte & 15]], 1).contiguous()
    return pairs.view(torch.int64).view(-1).to(device)


@cache
def _dynamic_on(device: torch.device) -> Tensor:
    return dynamic_code().to(device)


def read_tensor(file: str, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, in memory of its own.

    The file is opened for it alone: pages of a mapped file count as this process's memory for as
    long as it is open.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name).clone()
        return tensor


class Nf4Linear(PackedLinear):
    """A frozen linear layer that keeps its (out, in) weight as NF4 and makes it dense at each use.

    `weight` is the (out * in / 2,) uint8 tensor of codes.

    Args:
        in_features, out_features: of the layer; their product is a whole number of blocks.
        bias: kept in the compute type; None for none.
        block_size: weights that share one absmax.
        double_quant: keep absmax in 8 bits.
        compute_dtype: of the products.
    """

    absmax: Tensor | None
    absmax_codes: Tensor | None
    absmax_scales: Tensor | None
    absmax_mean: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        *,
        block_size: int,
        double_quant: bool,
        compute_dtype: torch.dtype,
    ) -> None:
        super().__init__(in_features, out_features, bias, compute_dtype)
        self.block_size, self.double_quant = block_size, double_quant
        for name in ("absmax", "absmax_codes", "absmax_scales", "absmax_mean"):
            self.register_buffer(name, None, persistent=False)
        self.weight = nn.Parameter(torch.empty(0, dtype=torch.uint8), requires_grad=False)
        self.original: tuple[str, str] | None = None
        """Safetensors file and tensor name that the weight was read from."""
        self.reads_original = False
        """Read the weight from that file at each use instead."""

    def quantise(self, weight: Tensor) -> None:
        """Take over a dense (out, in) weight."""
        packed, absmax = quantise_blocks(weight, self.block_size)
        self.weight = nn.Parameter(packed, requires_grad=False)
        if self.double_quant:
            self.absmax_codes, self.absmax_scales, self.absmax_mean = quantise_scales(absmax)
        else:
            self.absmax = absmax

    def block_scales(self) -> Tensor:
        """(blocks,) fp32: absmax of each block, out of its 8-bit codes where there are any.

        Raises:
            ValueError: the scales were cast, which would change the weight.
        """
        if self.absmax is not None:
            found = self.absmax
        else:
            assert self.absmax_codes is not None
            assert self.absmax_scales is not None
            assert self.absmax_mean is not None
            codes = self.absmax_codes
            found = _dynamic_on(codes.device).index_select(0, codes.int())
            whole = codes.numel() // SCALE_BLOCK * SCALE_BLOCK
            found[:whole].view(-1, SCALE_BLOCK).mul_(
                self.absmax_scales[: whole // SCALE_BLOCK, None]
            )
            found[whole:].mul_(self.absmax_scales[-1])
            found.add_(self.absmax_mean)
        if found.dtype != torch.float32:
            raise ValueError(f"the scales of an NF4 weight were cast to {found.dtype}")
        return found

    def write_dense(self, out: Tensor) -> None:
        """The dequantised weight into `out`, contiguous (out, in) of any floating type."""
        if self.reads_original:
            assert self.original is not None
            out.copy_(read_tensor(*self.original))
            return
        flat, scales = out.view(-1), self.block_scales()
        pairs, packed = _pairs(self.weight.device), self.weight.detach()
        step = TILE // self.block_size * self.block_size
        own = None if out.dtype == torch.float32 else torch.empty(step, device=out.device)
        for start in range(0, flat.numel(), step):
            end = min(start + step, flat.numel())
            tile = flat[start:end] if own is None else own[: end - start]
            index = packed[start // 2 : end // 2].int()
            torch.index_select(pairs, 0, index, out=tile.view(torch.int64))
            part = scales[start // self.block_size : end // self.block_size]
            tile.view(-1, self.block_size).mul_(part[:, None])
            if own is not None:
                flat[start:end] = tile

    def extra_repr(self) -> str:
        """Sizes and format."""
        double = ", double_quant" if self.double_quant else ""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, nf4, block_size={self.block_size}{double}"
