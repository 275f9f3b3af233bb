"""What a model is made of: frozen dataclasses, three profiles, and every deviation from the published code as a switch.

`corrected()` is the default; `published()` reproduces the published formulas. Any field can be set alone:
`with_options(corrected(), {"codebook.size": 128, "cmcm": "published"})`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from toc_cli.errors import UsageError
from toc_cli.fcid.settings import shown_value
from toc_cli.io.names import printable

Profile = Literal["corrected", "published", "plain"]
Alignment = Literal["fine-coarse", "uniform"]
ReadOut = Literal["fine", "coarse", "both"]


@dataclass(frozen=True)
class ModalitySpec:
    """The shape of one modality: `(length, *spatial, width)` per clip."""

    name: str
    length: int
    """Seconds (or words) T per clip; clips may be shorter, never longer."""
    width: int
    """Features C per second and position."""
    spatial: tuple[int, ...] = ()
    """`(H, W)` for maps, `()` for plain vectors."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise UsageError(f"The modality name {self.name!r} is not a plain word.", "Use letters, digits and _.")
        if len(self.spatial) not in (0, 2):
            raise UsageError(f"Modality {self.name} has the spatial shape {self.spatial}.", "It must be () or (H, W).")
        if min(self.length, self.width, *self.spatial, self.length) < 1:
            raise UsageError(f"Modality {self.name} has an empty axis: {self.length}, {self.spatial}, {self.width}.")


@dataclass(frozen=True)
class CodebookConfig:
    """One EMA codebook (K, D)."""

    size: int = 400
    """K, the number of codes of the coarse (or only) codebook."""
    fine_size: int = 0
    """K of the fine codebook; 0 takes `size`."""
    init: Literal["features", "uniform"] = "features"
    """`uniform`: codes in U(-1/400, 1/400), counts 0: every code not hit in the first step explodes by 1e5/3.
    `features`: codes are rows of the first batch, counts 1."""
    ema: Literal["joint", "sequential"] = "joint"
    """`sequential`: one update after another per modality, so the decay acts once per modality and step, with
    Laplace smoothing each time. `joint`: one update for all modalities, e = weight / count, nothing added."""
    decay: float = 0.99
    epsilon: float = 1e-5
    """Laplace smoothing of the sequential form."""
    own: float = 0.5
    """Weight of a row's own modality in the EMA; the others at the same second share the rest."""
    revival: Literal["features", "codes"] = "features"
    """`codes`: a dead code moves onto an active one, weight and count stay (so the next EMA takes it back), also in
    eval mode. `features`: code, weight and count move together onto a current feature, in training only."""
    dead_after: int = 100
    """A code is dead when it was not hit in more than this many steps."""
    active_within: int = 100
    """A code counts as active (`codes` form) when hit within this many steps."""
    jitter: float = 0.05
    """Size of the noise on a revived code: absolute in the `codes` form, in units of the features' spread else."""
    jitter_form: Literal["symmetric", "constant"] = "symmetric"
    """`constant`: the published FCID code draws its jitter between two equal bounds, so it is always -jitter."""
    distance: Literal["clamped", "expanded"] = "clamped"
    """`expanded`: sqrt of |x|^2 - 2xe + |e|^2, NaN where a feature meets a code. `clamped`: never below 0, and the
    distance to the chosen code computed directly."""
    commitment_own: float = 2.0
    commitment_cross: float = 1.0
    """Shared by the other modalities: with three, 0.5 each."""
    commitment_cost: float = 0.25


@dataclass(frozen=True)
class LossWeights:
    """The weight of every loss term; 0 leaves the term, and the parameters only it needs, out."""

    fine_reconstruction: float = 0.1
    coarse_reconstruction: float = 0.1
    fine_commitment: float = 1.0
    commitment: float = 1.0
    cmcm: float = 0.1
    club: float = 0.01
    """Mutual information of shared and specific features; above 0.01 it never helped, unclamped it diverges."""
    cpc: float = 0.0
    """Cross-modal prediction: costs 8 points of localisation where the InfoNCE terms below stand."""
    infonce: float = 1.0
    """Coarse vectors of every fine modality against those of every coarse one (text)."""
    second_infonce: float = 1.0
    """Fine vectors of the same second, audio against video."""
    clip_infonce: float = 1.0
    """Clip means of the fine vectors, audio against video."""
    coarse_infonce: float = 0.3
    """Coarse vectors of the fine modalities against each other: aligns the coarse codes of unseen voices and writers."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the parameters and the loss of a model."""

    profile: Profile = "corrected"
    """Where the other fields came from; only a label once they are set."""
    alignment: Alignment = "fine-coarse"
    """`uniform`: the baseline that aligns all modalities second by second with one codebook (DCID)."""
    fine: tuple[str, ...] = ("video", "audio")
    """Modalities aligned second by second; their order is the order of the sequential EMA updates."""
    coarse: tuple[str, ...] = ("text",)
    """Modalities aligned clip by clip."""
    width: int = 256
    """D, the width of the shared space and of the codes."""
    layers: int = 1
    """Transformer layers of a temporal block."""
    heads: int = 4
    feedforward: int = 0
    """Inner width of the transformer's MLP; 0 takes 4 * width."""
    dropout: float = 0.1
    """Inside the temporal blocks."""
    input_dropout: float = 0.15
    """Share of the fine modalities' inputs hidden from the semantic encoders in training; reconstruction targets stay."""
    specific_widths: dict[str, int] = field(default_factory=dict)
    """Per modality the width of its specific features, or channels of its specific map. Left out: `width`."""
    map_growth: int = 0
    """Channels of a specific map left out above, as a multiple of the data's width (published: 4); 0 takes `width`."""
    cpc_hidden: int = 0
    """Width of the LSTMs of CPC; 0 takes `width`."""
    cpc_steps: int = 1
    """Seconds ahead that CPC predicts."""
    mi_steps: int = 1
    """Updates of the mutual-information nets per step."""
    temperature: float = 0.1
    """Of InfoNCE."""
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    weights: LossWeights = field(default_factory=LossWeights)

    fine_codebook: bool = True
    """Off: seconds stay continuous in training and are read from the coarse codebook (published).
    On: seconds have their own codebook, read out beside the coarse one."""
    readout: ReadOut = "both"
    """Which codes downstream tasks see."""
    coarse_heads: Literal["linear", "relu"] = "linear"
    """`relu` leaves dead dimensions, which TOC then keeps."""
    spatial_attention: Literal["layout", "positions", "sum"] = "layout"
    """`sum`: the published softmax runs over an axis of length 1, so it adds all positions. `positions`: it runs over
    the positions. `layout`: every position stays an input of its own, so that shapes can be told by where things are."""
    cmcm: Literal["symmetric", "published"] = "symmetric"
    """`published`: exp can overflow, rows only, 1e-5 inside the log, and flat on small features.
    `symmetric`: log-softmax of rows and columns, distances in units of their own spread."""
    cmcm_temperature: float = 0.25
    """Of the soft codes in the symmetric form, in units of the distances' spread."""
    club: Literal["rows", "published"] = "rows"
    """`published`: on clip vectors the mean runs over features and the sum over the batch; nothing clamped.
    `rows`: mean over the batch, sum over features, targets layer-normed, clamped at 0."""
    club_negatives: Literal["other-clips", "any"] = "other-clips"
    """`any`: a negative may be the same clip, or its other modality."""
    infonce: Literal["both", "one-way"] = "both"
    """Directions of InfoNCE."""
    same_caption: Literal["ignored", "negative"] = "ignored"
    """Whether clips with an equal caption count as negatives of each other."""
    same_clip: Literal["ignored", "negative"] = "ignored"
    """Whether the other seconds of a clip count as negatives of a second: they often show the same event."""
    cpc_anchors: Literal["all", "one"] = "all"
    """`one`: a random anchor second per batch. `all`: every anchor at once, the same expectation."""
    coarse_targets: Literal["fixed", "trained"] = "fixed"
    """Whether the target of the coarse (and the baseline's text) reconstruction gets gradients: a way to collapse."""
    padding: Literal["masked", "attended"] = "masked"
    """`attended`: padded seconds and words are attended to and averaged like any other."""

    def __post_init__(self) -> None:
        names = self.fine + self.coarse
        if not self.fine or len(set(names)) != len(names):
            raise UsageError(f"fine={self.fine} and coarse={self.coarse} must name different modalities, one fine.")
        if {"fine", "clip"} & set(names):
            raise UsageError("The names 'fine' and 'clip' stand for levels of the model.", "Rename the modality.")
        for name in ("heads", "width", "cpc_steps"):
            _at_least(name, getattr(self, name), 1)
        for name in ("layers", "feedforward", "map_growth", "cpc_hidden", "mi_steps"):
            _at_least(name, getattr(self, name), 0)
        for name, weight in dataclasses.asdict(self.weights).items():
            _at_least(f"weights.{name}", weight, 0)
        for name in ("dead_after", "active_within", "jitter", "commitment_own", "commitment_cross", "commitment_cost"):
            _at_least(f"codebook.{name}", getattr(self.codebook, name), 0)
        for name in ("temperature", "cmcm_temperature"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}={getattr(self, name)} must be above 0.", f"Set model.{name}.")
        if self.width % self.heads:
            raise UsageError(f"width={self.width} must be a multiple of heads={self.heads}.", "Set model.heads.")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if self.codebook.size < 1 or self.codebook.fine_size < 0:
            raise UsageError(f"A codebook of {self.codebook.size} codes cannot be trained.", "Set model.codebook.size.")
        if not 0 < self.codebook.decay < 1:
            raise UsageError(f"codebook.decay={self.codebook.decay} must lie in (0, 1).")
        _check_choices(self)
        _check_choices(self.codebook)

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.fine + self.coarse

    def specific_width(self, spec: ModalitySpec) -> int:
        """Width of the specific features, or channels of the specific map, of a modality."""
        grown = self.map_growth * spec.width if spec.spatial else 0
        return self.specific_widths.get(spec.name) or grown or self.width

    def pooled_width(self, spec: ModalitySpec) -> int:
        """Width of the specific vector that the mutual-information nets see."""
        return spec.width if spec.spatial else self.specific_width(spec)


def corrected(alignment: Alignment = "fine-coarse") -> ModelConfig:
    """The default profile: what section 4 of the specification corrects, all switched on."""
    config = ModelConfig(alignment=alignment)
    if alignment == "uniform":
        weights = LossWeights(cmcm=1.0, cpc=1.0, second_infonce=0.0, clip_infonce=0.0, coarse_infonce=0.0)
        return dataclasses.replace(config, layers=2, weights=weights)
    return config


def published(alignment: Alignment = "fine-coarse") -> ModelConfig:
    """The published formulas, exactly."""
    uniform = alignment == "uniform"
    return ModelConfig(
        profile="published",
        alignment=alignment,
        fine=("audio", "video") if uniform else ("video", "audio"),
        layers=2 if uniform else 1,
        feedforward=1024,
        map_growth=4,
        input_dropout=0.0,
        mi_steps=5,
        codebook=CodebookConfig(
            init="uniform",
            ema="sequential",
            revival="codes",
            dead_after=300,
            jitter=1 / 1024,
            jitter_form="symmetric" if uniform else "constant",
            distance="expanded",
        ),
        weights=LossWeights(1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
        fine_codebook=False,
        readout="coarse",
        coarse_heads="relu",
        spatial_attention="sum",
        cmcm="published",
        club="published",
        club_negatives="any",
        infonce="one-way",
        same_caption="negative",
        same_clip="negative",
        cpc_anchors="one",
        coarse_targets="trained",
        padding="attended",
    )


def plain(alignment: Alignment = "fine-coarse") -> ModelConfig:
    """The baseline of what FCID adds: vector quantisation with shared codebooks and the InfoNCE terms, nothing else. No mutual
    information, no matching of codes, no reconstruction; every row moves and is drawn to its own code alone."""
    if alignment == "uniform":
        raise UsageError(
            "The plain profile is what fine-coarse alignment leaves of its InfoNCE terms; uniform alignment has none.",
            "Leave out --alignment, or use --profile corrected.",
        )
    none = {"fine_reconstruction": 0.0, "coarse_reconstruction": 0.0, "cmcm": 0.0, "club": 0.0, "cpc": 0.0}
    config = corrected()
    return dataclasses.replace(
        config,
        profile="plain",
        codebook=dataclasses.replace(config.codebook, own=1.0, commitment_cross=0.0),
        weights=dataclasses.replace(config.weights, **none),
    )


def of_codebooks(count: int, alignment: str = "fine-coarse") -> dict[str, Any]:
    """The settings that read a model out through one codebook or two: the read-out is then not mistaken for the losses."""
    if count not in (1, 2):
        raise UsageError(f"--codebooks {count}: a model has one or two.", "Use 1 or 2.")
    if alignment == "uniform":
        if count == 2:
            raise UsageError("Uniform alignment has one codebook, for all modalities.", "Leave out --codebooks 2.")
        return {}
    return {"fine_codebook": count == 2, "readout": "both" if count == 2 else "coarse"}


_PARTS = ("codebook", "weights", "specific_widths")
_PROFILES = {"corrected": corrected, "published": published, "plain": plain}


def profile_config(profile: Profile, alignment: Alignment = "fine-coarse") -> ModelConfig:
    """The named profile of an alignment."""
    if profile not in _PROFILES:
        raise UsageError(f"There is no profile {shown_value(profile)}.", f"Use {', '.join(_PROFILES)}.")
    return _PROFILES[profile](alignment)


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Plain nested values, ready for TOML or JSON; `from_dict` reads them back."""
    values = dataclasses.asdict(config)
    return values | {"fine": list(config.fine), "coarse": list(config.coarse)}


def from_dict(values: dict[str, Any]) -> ModelConfig:
    """A config from nested plain values; fields left out come from the named profile and alignment.

    Errors: `UsageError` for a field that does not exist or a value of the wrong kind, by its dotted name.
    """
    base = profile_config(values.get("profile", "corrected"), values.get("alignment", "fine-coarse"))
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return with_options(base, flat)


def with_options(config: ModelConfig, options: dict[str, Any]) -> ModelConfig:
    """`config` with dotted fields replaced: `{"width": 64, "codebook.size": 128, "specific_widths.audio": 32}`."""
    changes: dict[str, Any] = {}
    for name, value in options.items():
        part, _, inner = name.rpartition(".")
        if part == "specific_widths":
            widths = changes.setdefault(part, dict(config.specific_widths))
            widths[inner] = _fitting(name, value, 0)
        elif part in ("codebook", "weights") and inner in get_type_hints(type(getattr(config, part))):
            owner = changes.get(part, getattr(config, part))
            changes[part] = dataclasses.replace(owner, **{inner: _fitting(name, value, getattr(owner, inner))})
        elif not part and inner in get_type_hints(ModelConfig) and inner not in _PARTS:
            changes[inner] = _fitting(name, value, getattr(config, inner))
        else:
            raise UsageError(
                f"The model has no setting {printable(name, 60)!r}.", "See toc_cli.fcid.config.ModelConfig."
            )
    return dataclasses.replace(config, **changes)


def _fitting(name: str, value: Any, current: Any) -> Any:
    """`value` as the type of the field's current value."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise UsageError(f"{printable(name, 60)} is {shown_value(value)}.")
    if isinstance(current, tuple) and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(current):
        raise UsageError(
            f"{printable(name, 60)} is {shown_value(value)}; it should be a {type(current).__name__} such as {current!r}."
        )
    return value


def _at_least(name: str, value: float, low: int) -> None:
    if not low <= value < float("inf"):
        raise UsageError(f"{name}={value} must be at least {low}.", f"Set model.{name}.")


def _check_choices(config: ModelConfig | CodebookConfig) -> None:
    for name, hint in get_type_hints(type(config)).items():
        choices, value = get_args(hint), getattr(config, name)
        if isinstance(value, str) and value not in choices:
            raise UsageError(f"{name}={value!r} is none of {', '.join(map(repr, choices))}.")
