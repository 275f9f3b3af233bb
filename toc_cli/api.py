"""The two verbs of the Python interface, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.checkpoint.memory import MemoryTable
from toc_cli.io.features import Features
from toc_cli.ops.assign import assign
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline import Options, Plan, plan_optimization

Table: TypeAlias = "np.ndarray | torch.Tensor"


class ShownPlan(Plan):
    """A plan as a notebook or a prompt shows it."""

    def __repr__(self) -> str:
        """What to do, then a line per codebook."""
        report = self._report()
        lines = [f"Plan: {report.headline}"]
        for run in report.runs:
            lines += [f"  codebook {s.codebook['id']} {s.codebook['key']}: {s.summary}" for s in run.subjects]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The verdict and the table of figures, as a notebook draws them."""
        from toc_cli.report.notebook import render

        return render(self._report())

    def _report(self) -> Any:
        from toc_cli.report.assembly import assemble
        from toc_cli.report.reading import Run

        return assemble([Run("plan", self.record)])


def optimize(
    checkpoint: str | Path | Table | Checkpoint,
    features: str | Path | Table | Mapping[str, Table] | Sequence[str | Path] | Features,
    *,
    keep: str | float | int = "",
    **options: Any,
) -> Plan:
    """Score every dimension of every codebook of a checkpoint and keep the best (arXiv 2403.05168).

    >>> import numpy as np
    >>> import toc_cli as toc
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.normal(size=(64, 8)) * np.geomspace(3, 0.1, 8)
    >>> x = codes[rng.integers(0, 64, 2000)] + 0.3 * rng.normal(size=(2000, 8))
    >>> plan = toc.optimize(codes, x, keep=4, criterion="pca")
    >>> plan.kept[0].shape
    torch.Size([1, 1, 4])
    >>> plan.metrics[0]["after"]["token_agreement"] > 0.9
    True

    Args:
        checkpoint: A path, codes (K, D), or what `open_checkpoint` gave.
        features: Path(s), rows (N, W), a mapping of names to rows, or what `open_features` gave: what reaches the quantiser.
        keep: Share (0.5, "50%"), count (128) or "auto"; half, unless `budget` or `bytes` are among the options.
        options: Any field of `toc_cli.pipeline.Options`: criterion, weights, metric, sweep, seed, …

    Returns:
        The plan: `kept`, `scores`, `metrics`, `codebook`, and `save(path)`. Nothing is written before `save`.

    Raises:
        UsageError: an option that cannot be meant. InputError: a file that cannot be used.
    """
    source = MemoryTable(checkpoint) if isinstance(checkpoint, np.ndarray | torch.Tensor) else checkpoint
    plan = plan_optimization(source, features, Options(keep=str(keep), **options))
    return ShownPlan(**{field.name: getattr(plan, field.name) for field in fields(plan)})


def quantize(x: torch.Tensor | np.ndarray, codebook: Quantiser | Table) -> torch.Tensor:
    """The nearest code of each row of x, by the same exact search that the command line uses; ties to the smaller index.

    >>> import torch
    >>> import toc_cli as toc
    >>> toc.quantize(torch.tensor([[0.9, 0.1], [0.2, 0.7]]), torch.eye(2)).tolist()
    [0, 1]

    Args:
        x: (N, W) features.
        codebook: A quantiser (`plan.codebook`), or plain codes (K, W).

    Returns:
        (N,) int64; (N, L, H) where the quantiser has several levels or heads.

    Raises:
        InputError: widths that do not fit, or a row with NaN or Inf (named).
    """
    rows = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    if isinstance(codebook, np.ndarray):
        codebook = torch.from_numpy(codebook)
    if isinstance(codebook, torch.Tensor):
        return assign(rows, codebook)
    tokens = codebook.tokens(rows)
    return tokens[:, 0, 0] if tokens.shape[1:] == (1, 1) else tokens
