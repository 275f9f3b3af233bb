"""Convolutions of maps so small that one tile covers them.

Legend: F frames, C and O channels in and out, H x W the input map, P points per axis. Maps are position-major,
(H * W, F, C): a 1x1 convolution is then one matrix product, and so is every transform below.

Few channels: the convolution is written out as one matrix (H * W * C, H' * W' * O), zeros included, and the frames of a
map that lie together in memory meet it in one product.

Many channels: a product of polynomials of n and r terms is known from its values at P = n + r - 1 points (Toom 1963, Cook 1966; as
`F(n, r)` in Winograd 1980 and Lavin & Gray 2016, arXiv 1509.09308). Evaluate input and kernel at the points, multiply
channel matrices point by point, interpolate: P^2 products per map instead of r^2 per output position, 25 instead of 81
for 3x3 on a padded 3x3 map. The transposed problem gives the correlation that networks call convolution.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Form = Literal["valid", "same", "transposed"]
Size = tuple[int, int]

# With infinity as the last point. Small powers of two and their inverses keep float32 at the error of a direct sum.
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)
CHUNK = 1 << 22
"""Numbers of transformed kernel held at a time."""
WHOLE = 1 << 17
"""Entries of a whole matrix up to which one product with it beats transforms."""


class SmallConv(nn.Module):
    """A convolution (F, H, W, C) -> (F, H', W', O) on maps of a known size, kernel sides at most 3.

    `valid` shrinks each side by kernel - 1, `same` keeps it (zero padding), `transposed` grows it by kernel - 1.
    A side of the kernel that the map does not hold is cut to it. The kernel is stored (kh * kw, C, O); `torch_kernel`
    gives it in the layout of `nn.Conv2d`.
    """

    def __init__(
        self,
        size: Size,
        width_in: int,
        width_out: int,
        form: Form = "valid",
        bias: bool = True,
        side: int = 3,
        kernel: Size | None = None,
    ) -> None:
        super().__init__()
        self.size, self.form = size, form
        (h, w), grow = size, {"valid": -1, "same": 0, "transposed": 1}[form]
        self.kernel = kernel or ((side, side) if form == "same" else (min(side, h), min(side, w)))
        self.size_out = (h + grow * (self.kernel[0] - 1), w + grow * (self.kernel[1] - 1))
        taps = math.prod(self.kernel)
        # nn.Conv2d's default bound, 1 / sqrt(fan_in); torch counts a transposed kernel's fan from its output side.
        bound = 1 / math.sqrt(taps * (width_out if form == "transposed" else width_in))
        self.weight = nn.Parameter(torch.empty(taps, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(H * W, F, C) -> (H' * W', F, O)."""
        kernel = self._reached()
        if len(kernel) == 1:
            y = _frames_together(x, kernel[0])
        elif x.device.type == "cpu" and self._entries() <= WHOLE:
            y = self._whole(x)
        elif x.device.type == "cpu" and max(self._points()) <= len(POINTS) + 1 and not torch.is_autocast_enabled("cpu"):
            y = _pointwise(x, self.weight, *_transforms(self.size, self.kernel, self.form, x.dtype))
        else:
            y = self._direct(x)
        return y if self.bias is None else y + self.bias

    def torch_kernel(self) -> Tensor:
        """(O, C, kh, kw), or (C, O, kh, kw) for the transposed form: a view of the weight."""
        kernel = self.weight.unflatten(0, self.kernel)
        return kernel.permute((2, 3, 0, 1) if self.form == "transposed" else (3, 2, 0, 1))

    def _reached(self) -> Tensor:
        """The taps that meet the map: of a padded kernel on a map one wide, only the middle."""
        if self.form != "same" or self.size != (1, 1):
            return self.weight
        return self.weight[len(self.weight) // 2 :][:1]

    def _entries(self) -> int:
        """Of the matrix that takes a whole map to a whole map."""
        return math.prod(self.size) * math.prod(self.size_out) * math.prod(self.weight.shape[1:])

    def _whole(self, x: Tensor) -> Tensor:
        """One product with the convolution written out as a matrix."""
        taps = _taps(self.size, self.kernel, self.form, x.dtype)
        matrix = (taps @ self.weight.flatten(1)).view(*self._sides(), *self.weight.shape[1:]).transpose(1, 2)
        y = x.transpose(0, 1).flatten(1) @ matrix.flatten(2).flatten(0, 1)
        return y.unflatten(1, (-1, self.weight.shape[2])).transpose(0, 1)

    def _sides(self) -> tuple[int, int]:
        return math.prod(self.size), math.prod(self.size_out)

    def _points(self) -> list[int]:
        grow = 0 if self.form == "valid" else 1
        return [n + grow * (k - 1) for n, k in zip(self.size, self.kernel, strict=True)]

    def _direct(self, x: Tensor) -> Tensor:
        maps = x.unflatten(0, self.size).permute(2, 3, 0, 1)
        if self.form == "transposed":
            y = F.conv_transpose2d(maps, self.torch_kernel())
        else:
            y = F.conv2d(maps, self.torch_kernel(), padding="same" if self.form == "same" else 0)
        return y.permute(2, 3, 0, 1).flatten(0, 1)


def _frames_together(x: Tensor, kernel: Tensor) -> Tensor:
    """x @ kernel in the memory order of x: (P, F, C) as it is, or frame by frame as `SmallConv._whole` leaves maps."""
    if x.is_contiguous():
        return x @ kernel
    return (x.transpose(0, 1) @ kernel).transpose(0, 1)


@lru_cache(maxsize=64)
def _taps(size: Size, kernel: Size, form: Form, dtype: torch.dtype) -> Tensor:
    """(H * W * H' * W', kh * kw) of 0 and 1: which tap leads from a position to a position."""
    rows, columns = (_taps_1d(n, k, form) for n, k in zip(size, kernel, strict=True))
    return torch.einsum("iot,jpu->ijoptu", rows, columns).flatten(0, 3).flatten(1).to(dtype)


def _taps_1d(size: int, kernel: int, form: Form) -> Tensor:
    """(size, size', kernel): the correlation y[o] = sum_t x[o + t - before] w[t], or y[i + t] = sum x[i] w[t]."""
    size_out = size + {"valid": -1, "same": 0, "transposed": 1}[form] * (kernel - 1)
    before = (kernel - 1) // 2 if form == "same" else 0
    i, o, t = torch.arange(size)[:, None, None], torch.arange(size_out)[:, None], torch.arange(kernel)
    return (i + t == o if form == "transposed" else o + t - before == i).float()


@lru_cache(maxsize=64)
def _transforms(size: Size, kernel: Size, form: Form, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two-dimensional transforms (P^2, H * W) of the input, (P^2, kh * kw) of the kernel, (H' * W', P^2) of the output."""
    axes = [_transforms_1d(n, k, form) for n, k in zip(size, kernel, strict=True)]
    return tuple(torch.kron(a.contiguous(), b.contiguous()).to(dtype) for a, b in zip(*axes, strict=True))


def _transforms_1d(size: int, kernel: int, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of one axis, float64: y = out @ ((inp @ x) * (ker @ w))."""
    terms = size - kernel + 1 if form == "valid" else size
    points = terms + kernel - 1
    ker = _values(points, kernel)
    interpolate = torch.linalg.inv(_values(points, points))
    if form == "transposed":
        inp, out = _values(points, size), interpolate
    else:
        inp, out = interpolate.T, _values(points, terms).T
        if form == "same":
            before = (kernel - 1) // 2
            inp = inp[:, before : before + size]
    scale_inp, scale_ker = inp.abs().sum(1), ker.abs().sum(1)
    return inp / scale_inp[:, None], ker / scale_ker[:, None], out * (scale_inp * scale_ker)


def _values(points: int, terms: int) -> Tensor:
    """(points, terms): powers of the points; at infinity only the leading term stays."""
    powers = torch.tensor(POINTS[: points - 1], dtype=torch.float64)[:, None] ** torch.arange(terms)
    return torch.cat([powers, torch.eye(terms, dtype=torch.float64)[-1:]])


def _pointwise(x: Tensor, weight: Tensor, inp: Tensor, ker: Tensor, out: Tensor) -> Tensor:
    """(H * W, F, C), (taps, C, O) -> (H' * W', F, O)."""
    values = (inp @ x.flatten(1)).unflatten(1, x.shape[1:])
    product: Tensor = _Pointwise.apply(values, weight, ker)
    return (out @ product.flatten(1)).unflatten(1, product.shape[1:])


class _Pointwise(torch.autograd.Function):
    """(P, F, C), kernel (taps, C, O) -> (P, F, O); the transformed kernel, far larger, exists a chunk of C at a time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, ker: Tensor) -> Tensor:
        ctx.save_for_backward(values, weight, ker)
        product = values.new_zeros(*values.shape[:2], weight.shape[2])
        for part in _chunks(weight, len(ker)):
            product.baddbmm_(values[:, :, part], _transformed(weight, part, ker))
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, weight, ker = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_values = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for part in _chunks(weight, len(ker)):
            if to_values is not None:
                to_values[:, :, part] = torch.bmm(gradient, _transformed(weight, part, ker).transpose(1, 2))
            if to_weight is not None:
                outer = torch.bmm(values[:, :, part].transpose(1, 2), gradient)
                torch.mm(ker.T, outer.flatten(1), out=to_weight[:, part].flatten(1))
        return to_values, to_weight, None


def _chunks(weight: Tensor, points: int) -> list[slice]:
    step = max(1, CHUNK // (points * weight.shape[2]))
    return [slice(start, start + step) for start in range(0, weight.shape[1], step)]


def _transformed(weight: Tensor, part: slice, ker: Tensor) -> Tensor:
    """(taps, C, O) -> (P, C', O) for the channels of `part`."""
    chosen = weight[:, part]
    return (ker @ chosen.flatten(1)).unflatten(1, chosen.shape[1:])
