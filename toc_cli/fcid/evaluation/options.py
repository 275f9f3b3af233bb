"""What a user may ask of `toc evaluate`, checked once where it enters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from toc_cli.errors import UsageError
from toc_cli.ops.criterion import CRITERIA

Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""`progress(title, total, unit)` opens a bar and gives the function that moves it."""

PARTS = ("classification", "localisation", "transfer", "retrieval", "generation")


def silent(title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """The progress that shows nothing."""
    return nullcontext(lambda count: None)


@dataclass(frozen=True)
class EvaluateOptions:
    """The choices of one evaluation; each field is a flag."""

    keep: tuple[str, ...] = ("0.25", "0.5")
    """Shares or counts of dimensions, of each codebook; empty: all dimensions only."""
    criteria: tuple[str, ...] = ("toc", "xcov")
    weights: tuple[float, float] = (0.7, 0.3)
    tasks: tuple[str, ...] = ()
    """`LABEL` or `LABEL=TRAIN:VAL:TEST`; empty: every label with a train and a test split."""
    transfer: tuple[str, ...] = ()
    """Where probes are tested too: a split of the data, `FILE` or `FILE=SPLIT`."""
    modalities: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
    scoring_split: str | None = None
    """Unlabelled clips that give usage, moments and mean specific parts; None: the run's training split."""
    retrieval_splits: tuple[str, ...] = ()
    """Empty: the test splits of the tasks."""
    relevance: str = "auto"
    """`clip`: the same clip alone is right; `caption`: every clip with the same caption; auto: captions where there
    are some; else a label of clips: every clip with the same label."""
    probe_seeds: int = 3
    probe_epochs: int = 60
    probe_width: int = 128
    """Between the two layers of every probe, where no read-out is wider."""
    seed: int = 0
    """Of resampling and random selections."""
    device: str = "auto"

    def __post_init__(self) -> None:
        _known("--criterion", self.criteria, tuple(CRITERIA))
        _known("--part", self.parts, PARTS)
        for flag, value in (
            ("--seeds", self.probe_seeds), ("--probe-epochs", self.probe_epochs), ("--probe-width", self.probe_width),
        ):  # fmt: skip
            if value < 1:
                raise UsageError(f"{flag} {value} trains no probe.", "Use 1 or more.")
        if "auto" in self.keep:
            raise UsageError("--keep auto is no share or count.", "toc optimize finds one: give --keep 0.25,0.5 here.")
        if self.keep and not self.criteria:
            raise UsageError("--keep needs a criterion.", "Use --criterion toc.")

    def as_record(self) -> dict[str, Any]:
        """What changes a result."""
        values = {name: value for name, value in asdict(self).items() if name != "device"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _known(flag: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise UsageError(f"{flag} {value!r} is unknown.", f"Use one of: {', '.join(known)}.")
