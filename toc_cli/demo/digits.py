"""A VQ autoencoder of handwritten digits, made smaller: written in every form, decoded before and after, its features quantised."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from toc_cli.demo.choice import DemoChoice
from toc_cli.demo.decoder import outcome
from toc_cli.io.atomic import atomic_file
from toc_cli.io.families.base import Mode
from toc_cli.pipeline import Options, Outputs, Progress, QuantizeOptions, plan_optimization, quantize_features

EMIT: tuple[Mode, ...] = ("codebook", "masked", "sliced", "consumer")
HERE = Path(__file__).parent
CHECKPOINT = HERE / "digits_vq.safetensors"
FEATURES = HERE / "digits_features.h5"


def walk(folder: Path, choice: DemoChoice, progress: Progress) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """Copy the bundled model and features to `folder`, optimise in every emit mode, quantise. Its record by name, and the files."""
    options = Options(emit=EMIT, sweep="0.1:1.0:10", **choice.options())
    plan = plan_optimization(CHECKPOINT, FEATURES, options, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, features = folder / CHECKPOINT.name, folder / FEATURES.name
    for source, target in ((CHECKPOINT, checkpoint), (FEATURES, features)):
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
    outputs = plan.outputs = Outputs(checkpoint, options.emit, None, choice.force)
    plan.decode = partial(outcome, CHECKPOINT, features=FEATURES, seed=options.seed)
    written = plan.write()
    tokens = quantize_features(
        [str(features)], outputs.artefact, None, QuantizeOptions(), force=choice.force, progress=progress
    )
    return {outputs.record.name: plan.record}, [*written, Path(tokens["output"])]
