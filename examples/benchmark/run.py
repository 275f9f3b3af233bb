"""Train and evaluate on AV-Digits, one row of results per run: `python examples/benchmark/run.py FOLDER` (hours on two cores).

    python examples/benchmark/run.py FOLDER                                  # every profile, 5 seeds, all dimensions
    python examples/benchmark/run.py FOLDER --ablations --seeds 2            # each loss and each corrected switch
    python examples/benchmark/run.py FOLDER --models corrected-2 plain-2 --keep 12 0.125 0.1875 0.25 0.5
    python examples/benchmark/run.py FOLDER --validation                     # what choices are made by: no test clip is read

FOLDER/results.json grows by a row at a time, and a run that was stopped goes on where it stood. A row stands for its settings, the
data's bytes, the evaluation's options and the code that made it: where one of them changed, it is made again.
`tables.py` draws the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from models import ablations, profiles, settings_of

import toc_cli
from toc_cli.demo import AVDIGITS
from toc_cli.fcid.evaluation.evaluate import evaluate
from toc_cli.fcid.evaluation.options import EvaluateOptions
from toc_cli.fcid.run import train
from toc_cli.io.atomic import atomic_file

CRITERIA = ("toc", "usage-variance", "pca", "xcov", "discriminant")
TEST = {
    "tasks": (
        "label_clip=ave_train:val:ave_test",
        "label_attribute=ave_train:val:ave_test",
        "label_second=avvp_train:avvp_val:avvp_test",
        "label_second=ave_train:val:ave_test",
    ),
    "transfer": ("avvp_test", "other_test"),
    "retrieval_splits": ("ave_test",),
}
VALIDATION = {
    "tasks": ("label_clip=ave_train:val", "label_attribute=ave_train:val", "label_second=avvp_train:avvp_val"),
    "retrieval_splits": ("val",),
}
PARTS = ("classification", "localisation", "transfer", "retrieval")


def main() -> None:
    asked = arguments()
    asked.folder.mkdir(parents=True, exist_ok=True)
    file = asked.folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    options = EvaluateOptions(
        keep=tuple(asked.keep),
        criteria=tuple(asked.criteria) if asked.keep else (),
        parts=PARTS,
        probe_seeds=asked.probe_seeds,
        **(VALIDATION if asked.validation else TEST),
    )
    for seed in range(asked.seeds):
        for width in asked.widths:
            for name in asked.models or (ablations() if asked.ablations else profiles()):
                settings = settings_of(name, width, asked.epochs, seed)
                key = digest(
                    {"settings": settings, "data": sha256(asked.data), "options": options.as_record(), "code": code()}
                )
                if any(row["key"] == key for row in rows):
                    continue
                row = {"key": key, "model": name, "width": width, "seed": seed, "epochs": asked.epochs}
                row |= {"validation": asked.validation, "options": options.as_record(), "code": code()}
                row |= one(asked, settings, options)
                rows = [old for old in rows if place(old) != place(row)] + [row]
                with atomic_file(file) as temporary:
                    temporary.write_text(json.dumps(rows, indent=1))
                shown = {name: round(100 * values["full"], 1) for name, values in row["figures"].items()}
                print(f"{name}, width {width}, seed {seed}: {shown}", flush=True)


def one(asked: argparse.Namespace, settings: dict[str, Any], options: EvaluateOptions) -> dict[str, Any]:
    """Train one model, or go on with it, or take it where its training had ended; and evaluate it."""
    key = digest({"settings": settings, "data": sha256(asked.data), "code": code()})
    run, done = asked.folder / "runs" / key, asked.folder / "runs" / f"{key}.json"
    if not done.exists():
        begun = (run / "resume.ckpt").exists()
        if run.exists() and not begun:
            shutil.rmtree(run)
        started = time.perf_counter()
        summary = train(asked.data, run, overrides=None if begun else settings, resume=begun)
        seconds = None if begun else time.perf_counter() - started
        done.write_text(json.dumps({"steps": summary.steps, "best_step": summary.best_step, "seconds": seconds}))
        (run / "resume.ckpt").unlink(missing_ok=True)
    found = evaluate(run, asked.data, options)["evaluation"]
    return {"run": key, "training": json.loads(done.read_text()), "figures": figures(found)}


def figures(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Figure -> selection -> value, each the mean of video to audio and back."""
    values: dict[str, dict[str, float]] = {}
    for part in ("classification", "localisation", "transfer"):
        for row in found[part]:
            if row["from"] is None and ["video", "audio"] in row["pairs"]:
                name = f"{row['task']} {row['train']} to {row['test']}"
                values[name] = {variant: result["value"] for variant, result in row["results"].items()}
    for vectors in ("codes", "continuous"):
        ways = [r for r in found["retrieval"] if {r["from"], r["to"]} == {"video", "audio"} and r["vectors"] == vectors]
        if ways:
            shared = set.intersection(*(set(way["results"]) for way in ways))
            values[f"retrieval {vectors}"] = {
                variant: sum(way["results"][variant]["map"]["value"] for way in ways) / len(ways)
                for variant in sorted(shared)
            }
    return values


def place(row: dict[str, Any]) -> tuple[object, ...]:
    """What a row stands for: an old one of the same place gives way."""
    return (
        row["model"],
        row["width"],
        row["seed"],
        row["epochs"],
        row["validation"],
        json.dumps(row["options"], sort_keys=True),
    )


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code() -> str:
    """The sources that train and evaluate."""
    folder = Path(toc_cli.__file__).parent
    files = sorted(
        path for room in ("fcid", "ops") for path in (folder / room).rglob("*") if path.suffix in (".py", ".c", ".h")
    )
    return digest({str(path.relative_to(folder)): sha256(path) for path in files})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=AVDIGITS)
    parser.add_argument("--models", nargs="+", choices=[*profiles(), *ablations()], metavar="MODEL")
    parser.add_argument("--ablations", action="store_true", help="the corrected profile, a loss or a switch at a time")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=[64])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--keep", nargs="+", default=[], help="shares or counts of dimensions to prune to")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA, help="what chooses the dimensions that stay")
    parser.add_argument("--probe-seeds", type=int, default=3)
    parser.add_argument("--validation", action="store_true", help="evaluate on the validation splits alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
