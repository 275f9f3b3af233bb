"""Checkpoints and features joined to the mathematics: what the CLI, notebooks and tests call."""

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
