"""The bundled data, and the road that `toc demo` walks on it."""

from __future__ import annotations

import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toc_cli.demo.decoder import outcome
from toc_cli.errors import UsageError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.families.base import Mode
from toc_cli.pipeline import Options, Outputs, Progress, QuantizeOptions, plan_optimization, quantize_features
from toc_cli.report.assembly import assemble
from toc_cli.report.html import render
from toc_cli.report.reading import Run

EMIT: tuple[Mode, ...] = ("codebook", "masked", "sliced", "consumer")
BOUND = 0.01
HERE = Path(__file__).parent
CHECKPOINT = HERE / "digits_vq.safetensors"
FEATURES = HERE / "digits_features.h5"
AVDIGITS = HERE / "avdigits.h5"  # of examples/avdigits/build.py


COMMANDS = (
    "toc inspect MODEL",
    "toc capture MODEL PHOTOS_OR_SOUND -o feats.h5",
    "toc optimize MODEL --features feats.h5 --criterion auto --keep auto --max-distortion 0.01",
)
"""The same on a model of one's own."""


def run_demo(
    folder: Path, *, keep: str, criterion: str, force: bool, progress: Progress
) -> tuple[dict[str, Any], list[Path]]:
    """Copy the bundled model and features to `folder`, optimise in every emit mode, quantise, report.

    Returns the run record and the files written. UsageError if the folder has something in it and not `force`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise UsageError(f"{folder} exists and is not empty.", "--force writes into it; -o names another.")
    bound = BOUND if keep == "auto" else None
    options = Options(keep=keep, criterion=criterion, max_distortion=bound, emit=EMIT, sweep="0.1:1.0:10")
    plan = plan_optimization(CHECKPOINT, FEATURES, options, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, features = folder / CHECKPOINT.name, folder / FEATURES.name
    for source, target in ((CHECKPOINT, checkpoint), (FEATURES, features)):
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
    outputs = plan.outputs = Outputs(checkpoint, options.emit, None, force)
    plan.decode = partial(outcome, CHECKPOINT, features=FEATURES, seed=options.seed)
    written = plan.write()
    tokens = quantize_features(
        [str(features)], outputs.artefact, None, QuantizeOptions(), force=force, progress=progress
    )
    return plan.record, [*written, Path(tokens["output"]), *_page(folder, plan.record, outputs.record.name)]


def _page(folder: Path, record: dict[str, Any], name: str) -> list[Path]:
    """The report as a page, where the extra `report` is installed."""
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        return []
    page = folder / "report.html"
    with atomic_file(page) as temporary:
        temporary.write_text(render(assemble([Run(name, record)])), encoding="utf-8")
    return [page]
