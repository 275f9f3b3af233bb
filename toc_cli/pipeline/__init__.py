"""Checkpoints and features joined to the mathematics: what the CLI, notebooks and tests call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toc_cli.lazy import names_from

if TYPE_CHECKING:
    from toc_cli.pipeline.inspect import inspect_checkpoint
    from toc_cli.pipeline.options import Options, Progress
    from toc_cli.pipeline.outputs import Outputs
    from toc_cli.pipeline.plan import Plan
    from toc_cli.pipeline.planning import plan_optimization
    from toc_cli.pipeline.quantize import QuantizeOptions, quantize_features

__all__ = [
    "Options",
    "Outputs",
    "Plan",
    "Progress",
    "QuantizeOptions",
    "inspect_checkpoint",
    "plan_optimization",
    "quantize_features",
]

__getattr__ = names_from(
    __name__,
    {
        "Options": "options",
        "Outputs": "outputs",
        "Plan": "plan",
        "Progress": "options",
        "QuantizeOptions": "quantize",
        "inspect_checkpoint": "inspect",
        "plan_optimization": "planning",
        "quantize_features": "quantize",
    },
)
