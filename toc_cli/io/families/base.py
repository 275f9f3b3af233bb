"""What a family of checkpoints tells about its codebooks: where the tables are, how they are looked up, what stands around them.

Legend: L levels, H heads, K codes, D dimensions, W outer width (of the features before a projection).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from toc_cli.io.checkpoint.base import Checkpoint

if TYPE_CHECKING:
    import torch

Metric = Literal["euclidean", "cosine", "dot", "logits"]
Mode = Literal["codebook", "masked", "sliced", "consumer"]
MODES: tuple[Mode, ...] = get_args(Mode)
Stack = Literal["residual", "product", "independent"]
"""How numbered tables belong together: levels that each quantise what the former left, heads side by side, or not at all."""
Evidence = Literal["proven", "stated", "by structure", "assumed"]
"""How a reading is known: by the model's own tokens; by a config or the library's own class names; by keys that only this family
has; or by nothing but a name and a shape."""


@dataclass(frozen=True)
class Affine:
    """`y = x W^T + b`: weight (out, in), bias (out,) or None; a 1x1 convolution is stored here as its matrix."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the codebook dimensions after the projection in."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float = 1e-5


@dataclass(frozen=True)
class Parts:
    """The tensors that turn features into tokens: everything `toc quantize` needs and nothing else."""

    tables: tuple[torch.Tensor, ...]
    """Per level the effective codes (H, K_l, D): quotient, product and affine forms already computed, padding rows cut."""
    project_in: Affine | None = None
    """Outer features (W) to the codebook space (H*D), once around all levels."""
    norm_in: Norm | None = None
    project_out: Affine | None = None
    level_in: tuple[Affine, ...] = ()
    """Own projection per level (DAC, Higgs): the residual lives in the outer space."""
    level_out: tuple[Affine, ...] = ()
    logits: Affine | None = None
    """wav2vec 2.0: tokens are the argmax per head of this affine (H*K, W) of the features."""


@dataclass(frozen=True)
class Site:
    """A stored tensor with the code dimensions along one axis. The list of sites is the pruning recipe."""

    key: str
    axis: int
    role: Literal["codes", "sums", "scale", "producer", "consumer"]
    """codes: a table (masked: set to c); sums: code times count (`counts` names the counts); scale: per-dimension parameters of an
    affine or a norm; producer: rows of the layer before; consumer: columns of the layer after."""
    level: int | None = None
    """None: serves every level."""
    head: int | None = None
    """None: the axis is flat over heads, length H*D, head h at [h*D, (h+1)*D) (so D long where H = 1, or where all heads share)."""
    window: tuple[tuple[int, int, int], ...] = ()
    """(axis, start, stop) triples: the part of the tensor that holds this level and head, where one tensor holds several."""
    offset: int = 0
    """Where the code dimensions start along the axis (a consumer that reads a concatenation)."""
    counts: str | None = None
    """For `sums`: the key of the per-code counts."""
    floor: float = 0.0
    """For `sums` that are divided at lookup: the least count of the division (Mimi: 1e-5)."""
    bias: str | None = None
    """For producer: the bias cut with it; for consumer: the bias that takes the constant c, if there is one."""
    norm: Literal["", "weight_g", "original0"] = ""
    """For a weight-normed layer: the spelling of its magnitude; `key` then names the direction (weight_v, original1)."""
    folds: bool = True
    """For consumer: whether a constant folds into its bias exactly (no zero padding; no stride under a transposed kernel)."""


@dataclass(frozen=True)
class Relied:
    """A shape that a family relies on beside its sites: what its projections, norms and averages must have."""

    key: str
    axes: tuple[str | int, ...]
    """Each axis as a product of H, K, D and W ("H*D"), or as a number."""
    level: int = 0
    """Whose K counts."""
    kernel: bool = False
    """Whether further axes of length one may follow: a pointwise convolution."""


@dataclass(frozen=True)
class Codebook:
    """One quantiser of a checkpoint: L levels x H heads of K codes, found and described by its family."""

    family: str
    keys: tuple[tuple[str, ...], ...]
    """Full key of the stored tensor of [level][head] (repeated where one tensor holds several)."""
    num_codes: tuple[int, ...]
    """K of each level."""
    dim: int
    heads: int
    metric: Metric
    dtype: str
    """Type of the stored numbers, by name (`stored_types`)."""
    parts: Callable[[Checkpoint], Parts]
    """Reads and computes the tensors; only this touches data."""
    evidence: Evidence = "by structure"
    granted: bool = False
    """Whether the user takes an assumed reading for true (`--assume`): edited checkpoints are then offered."""
    residual: bool = False
    """Level l quantises what levels < l left."""
    own_dims_per_level: bool = False
    """Levels have their own projections, so each level may keep its own dimensions."""
    own_dims_per_head: bool = True
    """False where all heads must keep the same dimensions (one shared table)."""
    unit_vectors: bool = False
    """The normalised row is what is passed on (LlamaGen, GLM-Image), not the stored one."""
    stored_unit: bool = False
    """Rows are stored with unit norm and not normalised at lookup (vector-quantize-pytorch cosine): pruned rows are renormalised."""
    unit_in: bool = False
    """Features are divided by their length, head by head, and meet the codes as they are stored."""
    restack: Callable[[Stack], list[Codebook]] | None = None
    """Set where the file does not say how its numbered tables stack: the codebooks of each answer."""
    stack: Stack | None = None
    """The answer that is assumed where none is given; None: it is asked."""
    exact_levels: int | None = None
    """Only the first so many levels are fixed tables (QINCo: 1); None: all."""
    outer_width: int | None = None
    """Width W of the features before the projection; None without one."""
    ema_twins: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    additions: Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]] | None = None
    """Tensors that the sliced form adds around the codebook, from the basis (L|1, H, D, D') of the kept space and the constant
    (L, H, D) off it, both float64: selection projections."""
    stored_fill: Callable[[Checkpoint, torch.Tensor], torch.Tensor] | None = None
    """What must be stored (L, H, D) so that the effective code is the constant (L, H, D); None: the constant itself."""
    config_edits: Callable[[torch.Tensor], Mapping[tuple[str, ...], Any]] | None = None
    """`config.json` values of the sliced form, from kept."""
    value_edits: Callable[[torch.Tensor], Mapping[tuple[str, ...], Any]] | None = None
    """Plain values inside a torch file of the sliced form, from kept."""
    relies: tuple[Relied, ...] = ()
    refusals: Mapping[Mode, str] = field(default_factory=dict)
    """The sentence for each mode that is impossible."""
    kept_refusal: Callable[[Mode, int], str] | None = None
    """The sentence where a mode is impossible at this D' alone, else ""."""
    load_hint: Callable[[int], str] | None = None
    """For a sliced file without a config to patch: what its owner must write in the model's constructor, from D'."""
    together: str = ""
    """Codebooks with the same word share one config value: the sliced form needs all of them, cut to one D'."""
    zero_fill: bool = False
    """Whether c must be 0 (cosine lookups, or a consumer that cannot fold a constant in sliced form)."""
    warnings: tuple[str, ...] = ()
    root: str = ""
    """Prefix of every full key that `copies` replace (`ema/` where the copy is `model/`)."""
    copies: tuple[str, ...] = ()
    """Prefixes of further copies of the same codebook (`model/` beside `ema/`), edited alike."""

    @property
    def levels(self) -> int:
        """L."""
        return len(self.num_codes)

    @property
    def label(self) -> str:
        """The stored key, with the range of levels where there are several."""
        first, last = self.keys[0][0], self.keys[-1][-1]
        return first if first == last else f"{first} … {last}"

    @property
    def shown(self) -> str:
        """The label in sentences: a lone array has the empty key."""
        return self.label or "the array"
