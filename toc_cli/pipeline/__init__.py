"""Checkpoints and features joined to the mathematics: what the CLI, notebooks and tests call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

_ROOMS = {
    "Options": "options",
    "Outputs": "outputs",
    "Plan": "plan",
    "Progress": "options",
    "QuantizeOptions": "quantize",
    "inspect_checkpoint": "inspect",
    "plan_optimization": "planning",
    "quantize_features": "quantize",
}


def __getattr__(name: str) -> Any:
    """Import a room when its name is first asked for: what reads headers alone loads no torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
