"""Our own artefacts `<stem>.toc.safetensors`: a pruned codebook is a codebook whose features pass through its kept dimensions.

Legend: L levels, H heads, K codes, D dimensions before, D' kept ones (the dimensions of this codebook), W outer width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.artefact import descriptions
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Affine, Codebook, Mode, Parts
from toc_cli.io.families.layers import product
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

ALONE = "an artefact holds the pruned codebook alone, without a model around it"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The codebooks of an artefact, by the description in its metadata."""
    if ckpt.container != "toc artefact":
        return []
    return [_codebook(_Book(ckpt, id, book)) for id, book in enumerate(descriptions(ckpt))]


@dataclass(frozen=True)
class _Book:
    ckpt: Checkpoint
    id: int
    about: Mapping[str, Any]

    def key(self, name: str) -> str | None:
        """Full key of one of its tensors, None without it."""
        full = f"{self.id}.{name}"
        return full if full in self.ckpt.infos else None

    def read(self, name: str) -> torch.Tensor | None:
        key = self.key(name)
        return self.ckpt.get(key) if key else None

    @property
    def levels(self) -> int:
        return int(self.about["levels"])

    @property
    def heads(self) -> int:
        return int(self.about["heads"])

    def table(self, level: int) -> str:
        """Key of the codes of a level: one tensor of all, or one each where their K differ."""
        return self.key("codebook") or f"{self.id}.codebook.{level}"

    def codes(self, level: int) -> torch.Tensor:
        """(H, K, D'); of a level that keeps fewer than another, as they stand in the other's kept space."""
        import torch

        stacked = self.ckpt.get(self.table(level))
        codes = stacked[level] if stacked.dim() == 4 else stacked
        missing = self.size - codes.shape[-1]
        if not missing:
            return codes
        if self.own_projections:  # its own projection has nothing there
            return torch.nn.functional.pad(codes, (0, missing))
        basis = self.basis()
        own, widest = basis[level], basis[self.sizes.index(self.size)]
        if not torch.allclose(widest @ (widest.mT @ own), own, atol=1e-6):
            raise InputError(
                f"{printable(self.ckpt.path.name)}: the levels of codebook {self.id} keep dimensions that no one level has all of.",
                "Prune the checkpoint that it was made of.",
            )
        constant = self.ckpt.get(f"{self.id}.fill").double()[level].unsqueeze(1)  # (H, 1, D)
        inner = codes.double() - constant @ own[..., : codes.shape[-1]]
        return ((constant + inner @ own[..., : codes.shape[-1]].mT) @ widest).to(codes.dtype)

    def affine(self, name: str) -> Affine | None:
        weight = self.read(f"{name}.weight")
        return None if weight is None else Affine(weight, self.read(f"{name}.bias"))

    @property
    def own_projections(self) -> bool:
        return self.key("level_in.0.weight") is not None

    @property
    def sizes(self) -> list[int]:
        """D' of each level."""
        return [self.ckpt.infos[self.table(level)].shape[-1] for level in range(self.levels)]

    @property
    def size(self) -> int:
        """D', the largest over the levels."""
        return max(self.sizes)

    def basis(self) -> torch.Tensor:
        """(L|1, H, D, D') float64 of the kept space in the space before; columns of zeros where a level keeps fewer than another."""
        import torch

        if self.key("kept") is None:
            parts = [self._basis(f".{level}") for level in range(self.levels)]
            return torch.cat([torch.nn.functional.pad(part, (0, self.size - part.shape[-1])) for part in parts])
        return self._basis("")

    def _basis(self, tail: str) -> torch.Tensor:
        import torch

        rotation = self.read(f"rotation{tail}")
        if rotation is not None:
            return rotation if rotation.dim() == 4 else rotation[None] if rotation.dim() == 3 else rotation[None, None]
        kept = self.ckpt.get(f"{self.id}.kept{tail}")
        kept = kept if kept.dim() == 3 else kept[None]
        if not bool(((kept >= 0) & (kept < self.about["dim"])).all()):
            raise InputError(
                f"{printable(self.ckpt.path.name)} is damaged: codebook {self.id} keeps dimensions that it does not have.",
                "Write it again with toc optimize.",
            )
        return torch.nn.functional.one_hot(kept, int(self.about["dim"])).double().transpose(-1, -2)


def _codebook(book: _Book) -> Codebook:
    about, ckpt = book.about, book.ckpt
    if about.get("unit_in"):
        raise InputError(
            f"{printable(ckpt.path.name)} divides features by their length over the dimensions it had before it was pruned.",
            "Prune the checkpoint that it was made of.",
        )
    shapes = [ckpt.infos[book.table(level)].shape[-3:] for level in range(book.levels)]
    refusals: dict[Mode, str] = dict.fromkeys(("masked", "sliced", "consumer"), ALONE)
    normed = book.key("norm_in.weight") is not None
    notes = ("kept dimensions are numbered as this artefact holds them, not as the checkpoint before it did",)
    after_norm = ("features must be past the LayerNorm of the checkpoint, at the kept dimensions",)
    return Codebook(
        family=f"{about['family']}, pruned",
        keys=tuple((book.table(level),) * book.heads for level in range(book.levels)),
        num_codes=tuple(shape[1] for shape in shapes),
        dim=book.size,
        heads=book.heads,
        metric=about["metric"],
        dtype=ckpt.infos[book.table(0)].reads,
        parts=lambda opened: _parts(_Book(opened, book.id, about), normed),
        evidence="stated",
        residual=bool(about["residual"]),
        own_dims_per_level=book.own_projections,
        unit_vectors=bool(about["unit_vectors"]),
        stored_unit=bool(about["stored_unit"]),
        outer_width=_outer_width(book, normed),
        refusals=refusals,
        zero_fill=about["metric"] == "cosine",
        warnings=notes + after_norm if normed else notes,
    )


def _outer_width(book: _Book, normed: bool) -> int | None:
    names = ("logits.weight", "level_in.0.weight", "project_in.weight")
    found = [ckpt_key for name in names if (ckpt_key := book.key(name))]
    if found and not (normed and found[0].endswith("project_in.weight")):
        return book.ckpt.infos[found[0]].shape[1]
    return None if normed else book.heads * int(book.about["dim"])


def _parts(book: _Book, normed: bool) -> Parts:
    """The kept space is one more projection behind the one of the checkpoint: P^T (W x + b)."""
    import torch

    tables = tuple(book.codes(level) for level in range(book.levels))
    logits = book.affine("logits")
    basis = book.basis()
    if book.own_projections:
        pairs = [_own_projections(book, basis, level) for level in range(book.levels)]
        return Parts(tables, level_in=tuple(into for into, _ in pairs), level_out=tuple(out for _, out in pairs))
    if logits or normed:
        return Parts(tables, logits=logits)
    widest = basis[book.sizes.index(book.size) if len(basis) > 1 else 0]
    block = torch.block_diag(*widest.transpose(-1, -2))  # (H D', H D)
    before = book.affine("project_in")
    return Parts(tables, project_in=_through(block, before) if before else Affine(block))


def _through(block: torch.Tensor, before: Affine) -> Affine:
    bias = None if before.bias is None else product(block, before.bias[:, None]).squeeze(1)
    return Affine(product(block, before.weight), bias)


def _own_projections(book: _Book, basis: torch.Tensor, level: int) -> tuple[Affine, Affine]:
    """(W -> D', D' -> W) of a level with its own projections; the constant of its dropped dimensions goes into the bias."""
    into, out = book.affine(f"level_in.{level}"), book.affine(f"level_out.{level}")
    fill = book.ckpt.get(f"{book.id}.fill").double()
    if into is None or out is None:
        raise InputError(f"{printable(book.ckpt.path.name)} lacks the projections of level {level}.")
    own = basis[min(level, len(basis) - 1), 0]
    constant = fill if fill.dim() == 1 else fill[level, 0]
    off = constant - product(own, product(own.T, constant[:, None])).squeeze(1)
    bias = product(out.weight, off[:, None]).squeeze(1) + (0 if out.bias is None else out.bias)
    return _through(own.T, into), Affine(product(out.weight, own), bias)
