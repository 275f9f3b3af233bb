"""Small convolutions equal torch's, values and gradients, on every size the transforms cover and beyond."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toc_cli.fcid.modules import convolution
from toc_cli.fcid.modules.convolution import Form, SmallConv

SIZES = [(1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (2, 5), (1, 4), (9, 8)]


def torch_conv(conv: SmallConv, x: Tensor) -> Tensor:
    maps = x.unflatten(0, conv.size).permute(2, 3, 0, 1)
    if conv.form == "transposed":
        y = F.conv_transpose2d(maps, conv.torch_kernel(), conv.bias)
    else:
        y = F.conv2d(maps, conv.torch_kernel(), conv.bias, padding="same" if conv.form == "same" else 0)
    return y.permute(2, 3, 0, 1).flatten(0, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", ["valid", "same", "transposed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("whole", [0, convolution.WHOLE], ids=["transforms", "whole"])
def test_equals_torch(size: tuple[int, int], form: Form, dtype: torch.dtype, tolerance: float, whole: int,
                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(convolution, "CHUNK", 150)  # several chunks of channels
    monkeypatch.setattr(convolution, "WHOLE", whole)
    torch.manual_seed(0)
    conv = SmallConv(size, 5, 4, form).to(dtype)
    x = torch.randn(size[0] * size[1], 6, 5, dtype=dtype, requires_grad=True)
    y, expected = conv(x), torch_conv(conv, x)
    weight = torch.randn_like(y)
    parameters = [x, conv.weight, conv.bias]
    actual = torch.autograd.grad((y * weight).sum(), parameters)
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    for a, b in zip((y.detach(), *actual), (expected.detach(), *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(1 + b.abs().max()))


def test_a_kernel_larger_than_the_map_is_cut() -> None:
    assert SmallConv((2, 7), 3, 3).size_out == (1, 5)
    assert SmallConv((1, 1), 3, 3, "transposed", kernel=(2, 3)).size_out == (2, 3)


def test_initial_bound_is_that_of_torch() -> None:
    conv, theirs = SmallConv((7, 7), 16, 64), torch.nn.Conv2d(16, 64, 3)
    assert conv.weight.detach().abs().max() == pytest.approx(float(theirs.weight.detach().abs().max()), rel=0.01)
    conv, inverse = SmallConv((3, 3), 16, 64, "transposed"), torch.nn.ConvTranspose2d(16, 64, 3)
    assert conv.weight.detach().abs().max() == pytest.approx(float(inverse.weight.detach().abs().max()), rel=0.01)


def test_maps_frame_by_frame_are_neither_copied_nor_mixed_up() -> None:
    """`WHOLE` convolutions hand on maps whose frames lie together; every form that follows reads them alike."""
    torch.manual_seed(0)
    first, mix, project = SmallConv((4, 4), 3, 5), SmallConv((2, 2), 5, 5, "same"), SmallConv((2, 2), 5, 2, side=1)
    y = first(torch.randn(16, 6, 3))
    assert y.transpose(0, 1).is_contiguous()
    for conv in (mix, project):
        together, position_major = conv(y), conv(y.contiguous())
        assert together.transpose(0, 1).is_contiguous()
        torch.testing.assert_close(together, position_major)
