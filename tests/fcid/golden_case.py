"""Reading golden cases: arrays widened to float64, generated weights, recorded draws."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from toc_cli.fcid.draws import Draws

MASK = (1 << 64) - 1


class Case:
    """One golden case: `case["in.x"]` is a float64 tensor, `case.scalar("loss")` a number."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.json: dict[str, Any] = json.loads(path.read_text())
        self.arrays = load_file(path.with_suffix(".safetensors"))

    def __getitem__(self, name: str) -> Tensor:
        array = self.arrays[name]
        return array.double() if array.is_floating_point() else array

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def scalar(self, name: str) -> float:
        return self.json["scalars"][name]["value"]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose name starts with `prefix`, without it."""
        return {name.removeprefix(prefix): self[name] for name in self.arrays if name.startswith(prefix)}

    def generated(self) -> dict[str, Tensor]:
        """The weights of every module, `Module.name`, float64."""
        return {
            f"{module}.{name}": _splitmix(recipe)
            for module, tensors in self.json["weights"].items()
            for name, recipe in tensors.items()
        }


def cases(folder: Path, *patterns: str) -> list[Case]:
    """Every case of the patterns. The folder of the checkout has them all; one that `TOC_GOLDEN` names may hold a few."""
    found = [Case(path) for pattern in patterns for path in sorted(folder.glob(f"{pattern}.json"))]
    if not found and os.environ.get("TOC_GOLDEN"):
        pytest.skip(f"no {' or '.join(patterns)} in {folder}")
    assert found, f"no golden case matches {patterns}"
    return found


def _splitmix(recipe: dict[str, Any]) -> Tensor:
    count = int(np.prod(recipe["shape"]))
    with np.errstate(over="ignore"):
        z = np.uint64(recipe["seed"] & MASK) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        u = ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64)
    values = (recipe["mean"] + recipe["bound"] * ((u - 2**23) / 2**23)).astype("<f4").reshape(recipe["shape"])
    assert hashlib.sha256(values.tobytes()).hexdigest() == recipe["sha256"]
    return torch.from_numpy(values).double()


class RecordedDraws(Draws):
    """What the published code drew, instead of a generator."""

    def __init__(self, permutations: dict[str, Tensor] | None = None, anchor: int = 0, revival: Any = ()) -> None:
        super().__init__(torch.Generator())
        self.permutations, self.recorded_anchor = permutations or {}, anchor
        self.revival = list(revival)

    def permutation(self, rows: int, name: str) -> Tensor:
        assert len(self.permutations[name]) == rows
        return self.permutations[name]

    def anchor(self, low: int, high: int) -> int:
        assert low <= self.recorded_anchor <= high
        return self.recorded_anchor

    def integers(self, count: int, high: int) -> Tensor:
        drawn = self.revival[0]
        assert drawn.shape == (count,)
        assert int(drawn.max()) < high
        return drawn

    def uniform(self, *shape: int) -> Tensor:
        jitter = self.revival[1]
        assert jitter.shape == shape
        return jitter / (1 / 1024)


def close(actual: Tensor | float, expected: Tensor | float, rtol: float, atol: float = 0.0, what: str = "") -> None:
    actual, expected = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda m: f"{what}: {m}")
