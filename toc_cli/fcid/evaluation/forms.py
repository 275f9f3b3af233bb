"""What stays of a codebook, and in which form: all of it, sliced after the choice of codes, or chosen in the subspace.

Slice:     the code is chosen by all D dimensions, D' of it are read (the paper's deployed form).
Subspace:  the code is chosen by the D' kept dimensions alone (all that a pruned codebook can do).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toc_cli.fcid.evaluation.census import Scored
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.rotation import Rotation
from toc_cli.ops.scores import Scores
from toc_cli.ops.selection import parse_keep, select

FULL = "full"
FORMS = ("slice", "subspace")


@dataclass(frozen=True)
class Form:
    """How one codebook is used: `choose` picks the codes, `stand` says what they are."""

    choose: Quantiser
    stand: Quantiser

    def stored(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L, H) -> the kept dimensions (N, V): levels summed in a residual chain, else side by side."""
        parts = [codes.flatten(1) for codes in self.stand.kept_codes(tokens)]
        return torch.stack(parts).sum(0) if self.stand.residual else torch.cat(parts, 1)

    def whole(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L, H) -> (N, D) float64: dropped dimensions at their constant, what a decoder reads."""
        return self.stand.vectors(tokens)

    def continuous(self, x: Tensor) -> Tensor:
        """Features (N, D) in the kept dimensions or components, unquantised."""
        level = self.stand.levels[0]
        if level.rotation is not None:
            return x @ level.rotation[0].to(x)
        return x if level.kept is None else x[:, level.kept[0]]


@dataclass(frozen=True)
class Variant:
    """One way to keep dimensions of every codebook; `draws` has one entry, or one per seed of a random choice."""

    id: str
    form: str
    draws: Sequence[Mapping[str, Form]]
    criterion: str | None = None
    keep: str | None = None
    control: str | None = None
    """`random` or `worst`: what a choice of the same size is worth."""

    def draw(self, seed: int) -> Mapping[str, Form]:
        """The forms per codebook under a seed."""
        return self.draws[seed % len(self.draws)]

    def describe(self) -> dict[str, object]:
        """For the record."""
        kept = {}
        for name, form in self.draws[0].items():
            codes = form.stand.levels[0].codes
            kept[name] = int(codes.shape[0] * codes.shape[-1])
        fields = {"id": self.id, "form": self.form, "criterion": self.criterion, "keep": self.keep}
        return fields | {"control": self.control, "kept": kept}


def full(books: Mapping[str, Quantiser]) -> Variant:
    """All dimensions."""
    return Variant(FULL, FULL, [{name: Form(book, book) for name, book in books.items()}])


def variants(
    censuses: Mapping[str, Scored],
    keeps: Sequence[str],
    criteria: Sequence[str],
    weights: tuple[float, float],
    seeds: int,
    seed: int = 0,
) -> list[Variant]:
    """All dimensions; then per keep ratio and form each criterion, its worst dimensions, and random ones."""
    found = [full({name: census.full for name, census in censuses.items()})]
    scorings = {
        criterion: {name: census.rank(criterion, weights, seed) for name, census in censuses.items()}
        for criterion in criteria
        if criterion != "random"
    }
    for keep in keeps:
        for criterion, scores in scorings.items():
            for control in (None, "worst"):
                stands = [{name: cut(census, keep, scores[name], control) for name, census in censuses.items()}]
                found += in_both_forms(censuses, stands, criterion, keep, control)
        stands = []
        for draw in range(seeds):
            drawn = {name: census.rank("random", weights, seed + draw) for name, census in censuses.items()}
            stands.append({name: cut(census, keep, drawn[name], None) for name, census in censuses.items()})
        found += in_both_forms(censuses, stands, None, keep, "random")
    return found


def in_both_forms(
    censuses: Mapping[str, Scored],
    stands: Sequence[Mapping[str, Quantiser]],
    criterion: str | None,
    keep: str | None,
    control: str | None,
) -> list[Variant]:
    """The slice and the subspace form of pruned codebooks; a codebook that is not in `stands` keeps all."""
    found = []
    for form in FORMS:
        draws = [
            {
                name: Form(stand[name] if form == "subspace" else census.full, stand[name])
                if name in stand
                else Form(census.full, census.full)
                for name, census in censuses.items()
            }
            for stand in stands
        ]
        words = (control, criterion, keep, form)
        found.append(Variant(" ".join(word for word in words if word), form, draws, criterion, keep, control))
    return found


def cut(census: Scored, keep: str, ranked: Scores | Rotation, control: str | None) -> Quantiser:
    """The codebook with `keep` of its dimensions or components: the best, or the worst."""
    count = parse_keep(keep, census.full.dim)
    assert count is not None
    if isinstance(ranked, Rotation):
        matrix = ranked.matrix
        columns = matrix[:, -count:] if control == "worst" else matrix[:, :count]
        return census.full.rotated(torch.from_numpy(np.ascontiguousarray(columns))[None, None], census.fill)
    values, last = (-ranked.score, None) if control == "worst" else (ranked.score, ranked.last)
    return census.full.pruned(select(values, count, last=last).kept[None, None], census.fill)
