"""FCID on AV-Digits: a trained run's two codebooks made smaller, and what their codes carry from sight to sound before and after."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from toc_cli.demo.choice import DemoChoice
from toc_cli.fcid.evaluation import EvaluateOptions, Progress, evaluate
from toc_cli.fcid.evaluation.export import save_features
from toc_cli.fcid.run import train
from toc_cli.fcid.trainer import Watcher
from toc_cli.io.artefact import read_artefact, write_record
from toc_cli.io.atomic import atomic_folder
from toc_cli.pipeline import Options, Outputs, QuantizeOptions, plan_optimization, quantize_features
from toc_cli.pipeline.artefacts import quantisers_by_key

HERE = Path(__file__).parent
DATA = HERE / "avdigits.h5"  # of examples/avdigits/build.py
RUN = HERE / "avdigits_run"  # toc train-fcid DATA -o RUN --epochs 60 --set model.width=64 --set model.codebook.size=128
EVALUATION = EvaluateOptions(
    keep=(),
    tasks=("label_clip=ave_train:val:ave_test", "label_second=avvp_train:avvp_val:avvp_test"),
    modalities=("video", "audio"),
    parts=("classification", "localisation"),
    probe_seeds=1,
)


def walk(
    folder: Path, choice: DemoChoice, progress: Progress, watcher: Watcher | None
) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """Take the bundled run, or train one with its settings where a `watcher` looks on; prune its codebooks, quantise, evaluate.

    The records by name, and the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    with atomic_folder(run) as temporary:
        if watcher is None:
            shutil.copytree(RUN, temporary, dirs_exist_ok=True)
        else:
            train(DATA, temporary, config=RUN / "config.toml", watcher=replace(watcher, to_go_on=""))
    model = run / "model.safetensors"
    records, files, artefacts = {}, [model], []
    for level in ("fine", "coarse"):
        features = folder / f"{level}.features.h5"
        save_features(run, DATA, features, level=level, force=choice.force)
        options = Options(codebook=f"codebook.{level}.embedding", **choice.options())
        plan = plan_optimization(model, features, options, progress=lambda title, total: progress(title, total, "rows"))
        outputs = plan.outputs = Outputs(model, options.emit, folder / f"{level}.toc.safetensors", choice.force)
        files += [features, *plan.write()]
        tokens = quantize_features([str(features)], outputs.artefact, None, QuantizeOptions(), force=choice.force)
        files.append(Path(tokens["output"]))
        records[outputs.record.name] = plan.record
        artefacts.append(outputs.artefact)
    pruned = {path: quantisers_by_key(read_artefact(path)) for path in artefacts}
    record = evaluate(run, DATA, EVALUATION, artefacts=pruned, progress=progress)
    target = folder / "evaluation.toc.json"
    write_record(target, record)
    return records | {target.name: record}, [*files, target]
