"""Modules of vector-quantize-pytorch, each with the constructor of its sliced form: how they are trained, loaded and run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from toc_cli.io.families.base import Codebook

vqp = pytest.importorskip(
    "vector_quantize_pytorch", reason="needs vector-quantize-pytorch: pip install 'toc-cli[test-libs]'"
)

Build = Callable[..., torch.nn.Module]


@dataclass(frozen=True)
class Recipe:
    """One module of the library, and how it is built again around D' dimensions."""

    build: Build
    size: int
    """D'."""
    options: dict[str, Any]
    cut: dict[str, Any] | None = field(default_factory=dict)
    """Options that change for the sliced file; None: it refuses."""
    consumer: bool = False
    masked: bool = True
    width: int = 32
    shared_heads: bool = False


RECIPES = {
    "projected": Recipe(
        vqp.VectorQuantize, 10, {"dim": 32, "codebook_size": 64, "codebook_dim": 16}, {"codebook_dim": 10}, True
    ),
    "plain": Recipe(vqp.VectorQuantize, 14, {"dim": 24, "codebook_size": 64}, {"codebook_dim": 14}, width=24),
    "layernorm": Recipe(
        vqp.VectorQuantize,
        10,
        {"dim": 32, "codebook_size": 64, "codebook_dim": 16, "layernorm_after_project_in": True},
        None,
        True,
    ),
    "cosine": Recipe(
        vqp.VectorQuantize, 10, {"dim": 24, "codebook_size": 64, "use_cosine_sim": True}, {"codebook_dim": 10}, width=24
    ),
    "cosine projected": Recipe(
        vqp.VectorQuantize,
        7,
        {"dim": 32, "codebook_size": 48, "codebook_dim": 16, "use_cosine_sim": True},
        {"codebook_dim": 7},
        True,
    ),
    "learnable": Recipe(
        vqp.VectorQuantize,
        9,
        {"dim": 32, "codebook_size": 48, "codebook_dim": 16, "learnable_codebook": True, "ema_update": False},
        {"codebook_dim": 9},
        True,
    ),
    "heads apart": Recipe(
        vqp.VectorQuantize,
        9,
        {"dim": 32, "codebook_size": 48, "codebook_dim": 16, "heads": 4, "separate_codebook_per_head": True},
        {"codebook_dim": 9},
        True,
    ),
    "heads apart, identity": Recipe(
        vqp.VectorQuantize,
        5,
        {"dim": 32, "codebook_size": 48, "codebook_dim": 8, "heads": 4, "separate_codebook_per_head": True},
        {"codebook_dim": 5},
    ),
    "heads shared": Recipe(
        vqp.VectorQuantize,
        9,
        {"dim": 32, "codebook_size": 48, "codebook_dim": 16, "heads": 4},
        {"codebook_dim": 9},
        True,
        shared_heads=True,
    ),
    "residual": Recipe(
        vqp.ResidualVQ,
        10,
        {"dim": 32, "codebook_size": 64, "num_quantizers": 3, "codebook_dim": 16},
        {"codebook_dim": 10},
        True,
    ),
    "residual, plain": Recipe(
        vqp.ResidualVQ, 20, {"dim": 32, "codebook_size": 64, "num_quantizers": 2}, {"codebook_dim": 20}
    ),
    "residual, uneven": Recipe(
        vqp.ResidualVQ, 10, {"dim": 32, "codebook_size": (64, 32, 16), "codebook_dim": 16}, {"codebook_dim": 10}, True
    ),
    "residual, shared": Recipe(
        vqp.ResidualVQ,
        10,
        {"dim": 16, "codebook_size": 64, "num_quantizers": 3, "shared_codebook": True},
        {"codebook_dim": 10},
        width=16,
    ),
    "residual, cosine": Recipe(
        vqp.ResidualVQ,
        10,
        {"dim": 32, "codebook_size": 64, "num_quantizers": 2, "codebook_dim": 16, "use_cosine_sim": True},
        {"codebook_dim": 10},
        True,
    ),
    "grouped": Recipe(
        vqp.GroupedResidualVQ,
        9,
        {"dim": 32, "groups": 2, "codebook_size": 64, "num_quantizers": 2},
        {"codebook_dim": 9},
    ),
    "grouped, projected": Recipe(
        vqp.GroupedResidualVQ,
        7,
        {"dim": 32, "groups": 2, "codebook_size": 64, "num_quantizers": 2, "codebook_dim": 12},
        {"codebook_dim": 7},
        True,
    ),
    "affine": Recipe(
        vqp.VectorQuantize, 10, {"dim": 16, "codebook_size": 64, "affine_param": True}, {"codebook_dim": 10}, width=16
    ),
    "simvq": Recipe(vqp.SimVQ, 10, {"dim": 16, "codebook_size": 64}, {"dim": 10, "frozen_codebook_dim": 16}, width=16),
    "simvq, residual": Recipe(
        vqp.ResidualSimVQ,
        10,
        {"dim": 16, "codebook_size": 64, "num_quantizers": 2},
        {"dim": 10, "frozen_codebook_dim": 16},
        width=16,
    ),
    "qinco": Recipe(
        vqp.ResidualVQ,
        10,
        {"dim": 32, "codebook_size": 32, "num_quantizers": 2, "codebook_dim": 16, "implicit_neural_codebook": True},
        None,
        True,
        masked=False,
    ),
}


def trained(recipe: Recipe, rows: int, seed: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A module after a few EMA steps on clustered rows (N, W), in evaluation mode, and the rows."""
    torch.manual_seed(seed)
    model = recipe.build(**recipe.options)
    centres = torch.randn(40, recipe.width)
    x = centres[torch.randint(0, 40, (rows,))] + 0.3 * torch.randn(rows, recipe.width)
    model.train()
    for _ in range(4):
        model(x.unsqueeze(0))
    return model.eval(), x


def run_file(
    recipe: Recipe, path: Path, codebook: Codebook, x: torch.Tensor, options: dict[str, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (N, W) and tokens (N, L, H) of the library with the weights of a file."""
    torch.manual_seed(3)
    model = recipe.build(**{**recipe.options, **(options or {})})
    if "affine_param" in recipe.options:  # the library registers these only while it trains
        dim = model._codebook.embed.shape[-1]
        model._codebook.batch_mean = torch.zeros(1, 1, dim)
        model._codebook.batch_variance = torch.zeros(1, 1, dim)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return run(model.eval(), x, codebook)


def run(model: torch.nn.Module, x: torch.Tensor, codebook: Codebook) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        vectors, tokens, *_ = model(x.unsqueeze(0))
    if isinstance(model, vqp.GroupedResidualVQ):  # (groups, 1, N, levels)
        return vectors[0], tokens[:, 0].permute(1, 2, 0)
    tokens = tokens[0].reshape(len(x), -1)
    return vectors[0], tokens.reshape(len(x), codebook.levels, codebook.heads)
