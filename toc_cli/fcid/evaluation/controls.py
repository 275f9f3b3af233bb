"""Whether a criterion earned its place: its figures beside those of random dimensions of the same number and form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toc_cli.fcid.evaluation.forms import Variant


def beaten_by_random(rows: Sequence[Mapping[str, Any]], variants: Sequence[Variant]) -> list[str]:
    """A sentence per criterion that random dimensions match or beat anywhere; `rows` are those of probes."""
    means = [row for row in rows if row["from"] is None]
    random = {(v.keep, v.form): v.id for v in variants if v.control == "random"}
    found = []
    for criterion in dict.fromkeys(v.criterion for v in variants if v.criterion):
        compared, lost = 0, []
        for variant in variants:
            if variant.criterion != criterion or variant.control or (variant.keep, variant.form) not in random:
                continue
            for row in means:
                own = row["results"][variant.id]["value"]
                other = row["results"][random[variant.keep, variant.form]]["value"]
                compared += 1
                if own is not None and other is not None and own <= other:
                    lost.append(
                        (other - own, f"{row['task']} on {row['test']}, {variant.keep} {variant.form}", own, other)
                    )
        if lost:
            _, where, own, other = max(lost)
            found.append(
                f"{criterion} does no better than random dimensions in {len(lost)} of {compared} comparisons; at worst "
                f"{own:.3f} against {other:.3f} ({where})."
            )
    return found
