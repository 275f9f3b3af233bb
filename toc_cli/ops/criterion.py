"""The criteria of `--criterion`, one row each. Adding one: a row here, its `Maths` where the row points, a test.

Nothing heavy is imported, so that `--help` can list the table; the mathematics is loaded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from toc_cli.ops.criteria.base import Known, Maths
    from toc_cli.ops.rotation import Rotation
    from toc_cli.ops.scores import Scores

Need: TypeAlias = Literal["codes", "usage", "features", "pairs"]


@dataclass(frozen=True)
class Criterion:
    """One way to rank the dimensions of a codebook."""

    need: Need
    """Codes alone, how often each is chosen, the features that meet them, or paired modalities."""
    at: str
    """`module:NAME` of its `toc_cli.ops.criteria.base.Maths`."""
    help: str
    """What it keeps, in a few words."""
    rotates: bool = False
    """Whether its dimensions are the leading components of a rotation."""
    dear: bool = False
    """Whether it costs more than measuring what it chooses."""
    contends: bool = True
    """Whether `--criterion auto` tries it."""

    @property
    def maths(self) -> Maths:
        """What it computes."""
        module, _, name = self.at.partition(":")
        found: Maths = getattr(import_module(module), name)
        return found

    def rank(self, group: Sequence[Known]) -> Scores | Rotation:
        """Scores (D,), or a rotation (D, D), for the tables that keep one set of dimensions; ValueError where they lack a need."""
        if any(known.lacks(self.need) for known in group):
            raise ValueError(f"what the criterion needs ({self.need}) is missing")
        return self.maths.rank(group)


_CODES = "toc_cli.ops.criteria.codes"
_ROTATIONS = "toc_cli.ops.criteria.rotations"

CRITERIA: dict[str, Criterion] = {
    "toc": Criterion("codes", f"{_CODES}:TOC", "the paper's: much variance, little similarity"),
    "toc-live": Criterion("codes", f"{_CODES}:LIVE", "toc with dead dimensions last"),
    "usage-toc": Criterion("usage", f"{_CODES}:USAGE_TOC", "toc with codes counted by use"),
    "features": Criterion("features", f"{_CODES}:FEATURES", "toc over the features"),
    "variance": Criterion("codes", f"{_CODES}:VARIANCE", "variance of the codes"),
    "usage-variance": Criterion("usage", f"{_CODES}:USAGE_VARIANCE", "variance of the codes counted by use"),
    "similarity": Criterion("codes", f"{_CODES}:SIMILARITY", "least similarity of the codes"),
    "agreement": Criterion(
        "features", "toc_cli.ops.criteria.agreement:AGREEMENT", "greedy, by rank of the old token", dear=True
    ),
    "softmargin": Criterion(
        "features", "toc_cli.ops.criteria.softmargin:SOFTMARGIN", "likelihood of the old tokens", dear=True
    ),
    "random": Criterion("codes", f"{_CODES}:RANDOM", "seeded", contends=False),
    "xmodal": Criterion("pairs", f"{_CODES}:XMODAL", "toc plus what paired modalities share"),
    "pca": Criterion("usage", f"{_ROTATIONS}:PCA", "rotation: variance of the codes counted by use", rotates=True),
    "discriminant": Criterion(
        "features", f"{_ROTATIONS}:DISCRIMINANT", "rotation: used codes apart against their error", rotates=True
    ),
    "xcov": Criterion("pairs", f"{_ROTATIONS}:XCOV", "rotation: what paired modalities share", rotates=True),
}
"""Every criterion, in the order of help and sweep."""
