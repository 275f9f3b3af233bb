"""A criterion of the table on one codebook, as a test writes it."""

from __future__ import annotations

from toc_cli.ops.criteria.base import Known
from toc_cli.ops.criterion import CRITERIA


def score(name, codes, **known):
    """What the row `name` says of codes (K, D); `known` are fields of `Known`."""
    return CRITERIA[name].rank([Known(codes, **known)])


def draws(name, codes, seed=0, **known):
    """The same on its resamples."""
    return CRITERIA[name].maths.draws([Known(codes, **known)], seed)
