"""What a user may ask of `toc optimize`, checked once where it enters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, Literal

from toc_cli.errors import UsageError
from toc_cli.io.families.base import MODES, Mode
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.selection import Size, parse_keeps, parse_ratio, per_level

METRICS = ("euclidean", "cosine", "dot")
EVALUATED_ROWS = 16384
MOST_STEPS = 1000
BUDGET = "budget"
"""`keep` where --budget or --bytes decides."""
AUTO = "auto"
"""`--criterion auto`: whichever keeps most."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`progress(title, total rows)` opens a bar and gives the function that moves it."""


def silent(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """The progress that shows nothing."""
    return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Options:
    """The choices of one run; each field is a flag of `toc optimize`, recorded as given."""

    keep: str = ""
    """A share, a count, one of them for each level between commas, or auto; "": half, or what `budget` or `bytes` leave."""
    budget: int | None = None
    """Dimensions that all codebooks keep together."""
    bytes: int | None = None
    """Bytes that the codes of all codebooks take together."""
    criterion: str = "toc"
    weights: tuple[float, float] = (0.7, 0.3)
    """(similarity, variance)."""
    normalize: Literal["none", "l2"] = "none"
    codes: str | None = None
    """`used`, a share or a count of the codes that stay; None: all."""
    levels: int | None = None
    """The first so many levels of residual codebooks; None: all."""
    refresh: int | None = None
    """Lloyd steps in the kept subspace; None: the codes stay as they came."""
    lean: bool = False
    """Leave out of the edited copies what training needed alone."""
    ratio: str | None = None
    """`MAX:MIN`: the share of D' from either end of the ranking."""
    codebook: str | tuple[str, ...] | None = None
    """Keys or patterns of tables; None: every codebook of the file."""
    layout: str | None = None
    metric: str | None = None
    stack: str | None = None
    assume: bool = False
    """Take readings that are assumed for true: the edited checkpoints are then offered."""
    rows: Literal["unit", "as-is"] | None = None
    table: Literal["raw", "mean"] | None = None
    scale: str | None = None
    """Key of the scale of a quantised table, or `none`."""
    modalities: tuple[str, ...] = ()
    channel_axis: int | None = None
    space: Literal["auto", "encoder", "codebook"] = "auto"
    """Whether the features are before the projection (encoder) or past it, where both sides are as wide."""
    max_memory: int = 2**30
    """Bytes for blocks of features."""
    limit: int | None = None
    """Rows of each modality that the whole run takes, spread over its units; None: all."""
    eval_rows: int | None = EVALUATED_ROWS
    """Rows of each modality on which before and after are measured; None: all. Usage is always counted on all."""
    fill: Literal["mean", "zero"] | None = None
    sweep: str | None = None
    max_distortion: float | None = None
    min_agreement: float | None = None
    emit: tuple[Mode, ...] = ("codebook",)
    device: str = "auto"
    seed: int = 0
    settings: str | None = None
    """File and names of the options whose value the project's settings gave."""

    def __post_init__(self) -> None:
        one_of("--criterion", self.criterion, (*CRITERIA, AUTO))
        one_of("--normalize", self.normalize, ("none", "l2"))
        one_of("--space", self.space, ("auto", "encoder", "codebook"))
        for flag, value, known in (("--rows", self.rows, ("unit", "as-is")), ("--table", self.table, ("raw", "mean"))):
            if value is not None:
                one_of(flag, value, known)
        if self.metric is not None:
            one_of("--metric", self.metric, METRICS)
        if self.fill is not None:
            one_of("--fill", self.fill, ("mean", "zero"))
        if self.ratio is not None:
            parse_ratio(self.ratio)
            if self.criterion == AUTO or CRITERIA[self.criterion].rotates:
                raise UsageError(
                    f"--ratio does not go with --criterion {self.criterion}.",
                    "A rotation keeps its leading components; auto takes the best of each size.",
                )
        self._settle_size()
        if self.keep == "auto" and self.max_distortion is None and self.min_agreement is None:
            raise UsageError("--keep auto needs a bound.", "Give --max-distortion, --min-agreement or both.")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            meant = f", such as {self.min_agreement:g}%" if 1 < self.min_agreement <= 100 else ""
            raise UsageError(
                f"--min-agreement {self.min_agreement:g} is not a share.",
                f"Use a number from 0 to 1, or percent{meant}.",
            )
        if self.max_distortion is not None and not 0 <= self.max_distortion < float("inf"):
            raise UsageError(
                f"--max-distortion {self.max_distortion} is no bound of the excess distortion.", "Use a number from 0."
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative.", "Use a whole number from 0.")
        if self.refresh is not None and not 1 <= self.refresh <= MOST_STEPS:
            raise UsageError(f"--refresh {self.refresh} is no count of steps.", f"Use 1 to {MOST_STEPS}.")
        if self.levels is not None and self.levels < 1:
            raise UsageError(f"--levels {self.levels} keeps nothing.", "Use a count from 1.")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit} reads nothing.", "Use a count from 1.")
        if self.eval_rows is not None and self.eval_rows < 1:
            raise UsageError(f"--eval-rows {self.eval_rows} measures nothing.", "Use a count from 1, or all.")

    def _settle_size(self) -> None:
        """Give `keep` its word where nothing was said. UsageError where two flags say how much is kept."""
        given = [flag for flag, value in (("--budget", self.budget), ("--bytes", self.bytes)) if value is not None]
        if self.keep not in ("", BUDGET):
            given.insert(0, "--keep")
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} both say how much is kept.", "Give one of them.")
        for flag, value in (("--budget", self.budget), ("--bytes", self.bytes)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value} keeps nothing.", "Use a number from 1.")
        budgeted = self.budget is not None or self.bytes is not None
        if not self.keep or (self.keep == BUDGET and not budgeted):
            object.__setattr__(self, "keep", BUDGET if budgeted else "0.5")

    def size(self, dim: int, levels: int) -> Size | None:
        """D' of a codebook of `dim` dimensions and `levels` levels; None where the features decide it. UsageError for a size that
        cannot be."""
        return None if self.keep == BUDGET else parse_keeps(self.keep, dim, min(levels, self.levels or levels))

    def refuse_size(self, dim: int) -> None:
        """UsageError for a size that no codebook of up to `dim` dimensions has, whatever its levels."""
        if self.keep != BUDGET and "," in self.keep:
            per_level(self.keep, dim)
        else:
            self.size(dim, 1)

    @property
    def reading(self) -> dict[str, Any]:
        """What the user says of how the checkpoint is read: the arguments of `detect`."""
        names = ("codebook", "layout", "metric", "stack", "assume", "rows", "table", "scale")
        return {name: getattr(self, name) for name in names}

    @property
    def recuts(self) -> bool:
        """Whether codes or levels are cut, or codes estimated anew, so that a form may leave the dimensions alone."""
        return self.codes is not None or self.levels is not None or self.refresh is not None

    @property
    def searches(self) -> bool:
        """Whether something is chosen by what it does to the features: those of one part, to be measured on the other."""
        return AUTO in (self.criterion, self.keep) or self.bytes is not None

    def as_record(self) -> dict[str, Any]:
        """The options as the record keeps them: what changes a result, not where or how fast it was computed."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("max_memory", "device")}
        return {**kept, "eval_rows": "all" if self.eval_rows is None else self.eval_rows}


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    """UsageError that lists what is known, if `value` is not among it."""
    if value not in known:
        close = get_close_matches(value, known, n=1)
        guess = f"Did you mean {close[0]}? " if close else ""
        raise UsageError(f"{flag} {value!r} is unknown.", f"{guess}Use one of: {', '.join(known)}.")


def parse_modes(names: Sequence[str] | None) -> tuple[Mode, ...]:
    """The emit modes of repeated `--emit`, or of one with commas, each once; `codebook` without any. UsageError for an unknown one."""
    asked = [part.strip().lower() for name in names or () for part in name.split(",")]
    for name in asked:
        one_of("--emit", name, MODES)
    return tuple(mode for mode in MODES if mode in asked) if asked else ("codebook",)


def parse_weights(text: str) -> tuple[float, float]:
    """`SIM,VAR` as two numbers. UsageError otherwise."""
    try:
        similarity, variance = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--weights {text!r} is not SIM,VAR.", "Use two numbers, such as 0.7,0.3.") from None
    if not (abs(similarity) < float("inf") and abs(variance) < float("inf")):
        raise UsageError(f"--weights {text!r} is not finite.", "Use two numbers, such as 0.7,0.3.")
    return similarity, variance


def parse_bytes(text: str, flag: str = "--max-memory", least: int = 2**20) -> int:
    """`512MiB`, `1GiB`, `2g` or plain bytes. UsageError otherwise."""
    units = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    plain = text.strip().lower().removesuffix("ib").removesuffix("b")
    number, unit = (plain[:-1], plain[-1:]) if plain[-1:] in units and plain[-1:] else (plain, "")
    try:
        size = int(float(number) * units[unit])
    except (ValueError, OverflowError):
        raise UsageError(f"{flag} {text!r} is not a size.", "Use a size such as 512MiB or 1GiB.") from None
    if size < least:
        raise UsageError(
            f"{flag} {text} is below {'1 MiB' if least > 1 else '1 byte'}.", "Use a size such as 512MiB or 1GiB."
        )
    return size


def parse_share(text: str | float) -> float:
    """A number, or percent: `0.95`, `95%`. UsageError otherwise."""
    written = str(text).strip()
    try:
        return float(written.removesuffix("%")) / (100 if written.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"{written!r} is no number.", "Use a share such as 0.01, or percent such as 1%.") from None


def parse_rows(text: str) -> int | None:
    """A count of rows, or None for `all`. UsageError otherwise."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"--eval-rows {text!r} is not a count.", "Use a whole number, or all.")
    return int(text)
