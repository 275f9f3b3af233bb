"""What a run's codes can do, before and after TOC. Read top-down: options, evaluate; sources (what is encoded), forms
(what is kept), tasks and probing (classification, localisation, transfer), retrieval, generation; figures (intervals)."""

from __future__ import annotations

from toc_cli.fcid.evaluation.evaluate import evaluate
from toc_cli.fcid.evaluation.options import EvaluateOptions, Progress, silent

__all__ = ["EvaluateOptions", "Progress", "evaluate", "silent"]
