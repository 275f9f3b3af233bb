"""Which forms of `--emit` a codebook offers, and the sentence for each that it does not: from names and shapes alone, no tensor."""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.families import moments
from toc_cli.io.families.base import MODES, Codebook, Mode
from toc_cli.io.names import printable

ASSUMED = "the file does not show how its codes are looked up, so this reading is assumed (--assume takes it for true)"


UNEVEN: dict[Mode, str] = {
    "sliced": "its library gives all levels codes of one width (the masked form keeps them, the codebook alone is smaller)",
    "consumer": "one layer reads the sum of all levels, of which each would keep other dimensions",
}
"""Why levels that keep unlike many dimensions cannot be written so."""


def supported(
    ckpt: Checkpoint, codebook: Codebook, size: int | tuple[int, ...] | None = None, *, rotated: bool = False
) -> dict[Mode, str]:
    """Which modes a codebook offers: "" where it does, else the reason; `size` = D' (of each level, where they differ) also
    checks what that size rules out."""
    reasons = {mode: _refusal(ckpt, codebook, mode, rotated) for mode in MODES}
    if isinstance(size, tuple):
        reasons = {mode: reason or UNEVEN.get(mode, "") for mode, reason in reasons.items()}
        if _one_table(ckpt, codebook):
            reasons["masked"] = reasons["masked"] or "its levels share one table, which can keep one set of dimensions"
    widest = max(size) if isinstance(size, tuple) else size
    if widest is not None and codebook.kept_refusal:
        reasons = {mode: reason or codebook.kept_refusal(mode, widest) for mode, reason in reasons.items()}
    return reasons


def _one_table(ckpt: Checkpoint, codebook: Codebook) -> bool:
    """Whether several levels are stored once, under one name or several."""
    first = [level[0] for level in codebook.keys]
    places = [ckpt.infos[key].storage or key for key in first if key in ckpt.infos]
    windows = {site.window for site in codebook.sites if site.role == "codes"}
    return len(set(places)) < len(places) and len(windows) < len(places)


def _refusal(ckpt: Checkpoint, codebook: Codebook, mode: Mode, rotated: bool) -> str:
    roles = {site.role for site in codebook.sites}
    if mode == "codebook":
        return ""
    if mode in codebook.refusals or ckpt.read_only:
        return codebook.refusals.get(mode) or (ckpt.read_only or "").rstrip(".")
    if codebook.evidence == "assumed" and not codebook.granted:
        return ASSUMED
    if mode == "masked" and not roles & {"codes", "sums"}:
        return "no stored table of this codebook can be edited in place"
    if mode == "consumer" and "consumer" not in roles:
        return "the layer that reads the quantised vector is not in this file, or not known"
    known = roles & {"producer", "consumer"} or codebook.additions or codebook.load_hint
    if mode == "sliced" and not known:
        return "the layers around the codebook are not in this file, or not known"
    if rotated and "scale" in roles:
        return "a rotation mixes the dimensions, and its parameters per dimension cannot be mixed"
    if (
        rotated
        and mode == "masked"
        and (codebook.metric != "euclidean" or codebook.unit_vectors or codebook.stored_fill)
    ):
        return "a rotation mixes the dimensions, and only the distances of a Euclidean lookup bear that at full width"
    if rotated and any(BYTES[ckpt.infos[site.key].reads] < 4 for site in codebook.sites):
        return "rotated weights do not fit into the half precision of the file exactly"
    return _optimizer_refusal(ckpt, codebook, rotated) if mode == "sliced" else ""


def cut_keys(codebook: Codebook) -> set[str]:
    """The keys whose shape the sliced form changes."""
    biases = {site.bias for site in codebook.sites if site.role == "producer" and site.bias}
    return {site.key for site in codebook.sites} | biases


def _optimizer_refusal(ckpt: Checkpoint, codebook: Codebook, rotated: bool) -> str:
    state = moments.of_parameters(ckpt, cut_keys(codebook), codebook.copies)
    if state.unsure:
        name = printable(state.unsure[0])
        return (
            f"the optimizer state in the file may belong to {name}, and nothing says for certain which moments to cut"
        )
    if rotated and any(state.found.values()):
        return "the second moments of the optimizer state in the file cannot be rotated"
    return ""
