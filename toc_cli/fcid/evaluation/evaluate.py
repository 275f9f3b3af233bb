"""`evaluate`: a run (or a codebook) and labelled data -> the evaluation record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toc_cli import __version__
from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.data import Split, open_split, split_names
from toc_cli.fcid.evaluation import census, forms, generation, pictures, probing, retrieval
from toc_cli.fcid.evaluation.controls import beaten_by_random
from toc_cli.fcid.evaluation.forms import Variant
from toc_cli.fcid.evaluation.options import PARTS, EvaluateOptions, Progress, silent
from toc_cli.fcid.evaluation.reader import CodeReader
from toc_cli.fcid.evaluation.sources import Codes, CodeSource, TrainedModel
from toc_cli.fcid.evaluation.tasks import Splits, Trial, trials
from toc_cli.fcid.probes import ProbeConfig
from toc_cli.fcid.run import device_of
from toc_cli.fcid.run_folder import RunFolder, load_model
from toc_cli.io.artefact import RECORD_SCHEMA
from toc_cli.io.atomic import sha256
from toc_cli.io.names import printable
from toc_cli.ops.quantiser import Quantiser

ARTEFACT = "artefact"
PROBED = {"classification", "localisation", "transfer"}
"""Parts that need labels."""
Pruned = Mapping[str, Quantiser]
"""The codebooks of an artefact, by the key of the tensor they were cut from."""


def evaluate(
    source: str | Path,
    data: str | Path,
    options: EvaluateOptions | None = None,
    *,
    codebook: tuple[str, Quantiser] | None = None,
    artefacts: Mapping[Path, Pruned] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What the codes of `source` can do on the labelled splits of `data`, with all dimensions and after TOC.

    `source` is the folder (or model.safetensors) of a run; with `codebook`, its key and quantiser, it is the file that
    holds it, and the data holds features of its width. `artefacts` are pruned codebooks of the source, by file: together
    they are one more variant beside those that `options` asks for. Returns a run record whose `evaluation` holds the results.
    """
    options = options or EvaluateOptions()
    evaluation = Evaluation(Path(source), Path(data), options, codebook, artefacts or {}, progress)
    started = time.perf_counter()
    found = evaluation.run()
    return {
        "schema_version": RECORD_SCHEMA,
        "tool": {"name": "toc", "version": __version__},
        "inputs": evaluation.inputs(),
        "options": options.as_record(),
        "outputs": [],
        "warnings": [{"id": id, "codebook": None, "text": text} for id, text in evaluation.warnings],
        "codebooks": [],
        "evaluation": found,
        "timing": {"seconds": round(time.perf_counter() - started, 3)},
    }


class Evaluation:
    """One evaluation: what is read, and the parts of the record."""

    def __init__(
        self,
        path: Path,
        data: Path,
        options: EvaluateOptions,
        codebook: tuple[str, Quantiser] | None,
        artefacts: Mapping[Path, Pruned],
        progress: Progress,
    ) -> None:
        self.path, self.data, self.options, self.progress = path, data, options, progress
        self.warnings: list[tuple[str, str]] = []
        self.source = self._source(codebook, bool(options.keep or artefacts))
        self.modalities = self._modalities()
        self.splits = Splits(data, self.modalities)
        self.trials = self._trials()
        self.scoring = self.splits.open(self._scoring_split())
        self.reader = CodeReader(self.source)
        self.artefacts = artefacts
        self.variants = self._variants(artefacts)
        one = ProbeConfig(epochs=options.probe_epochs, width=options.probe_width)
        self.configs = [replace(one, seed=seed) for seed in range(options.probe_seeds)]

    def run(self) -> dict[str, Any]:
        """The `evaluation` of the record."""
        rows = self._probed()
        self.warnings += [("no_better_than_random", text) for text in beaten_by_random(rows, self.variants)]
        found: dict[str, Any] = {
            "source": {"name": self.path.name, **self.source.describe()},
            "data": self.data.name,
            "modalities": list(self.modalities),
            "scoring_split": self.scoring.name,
            "variants": [variant.describe() for variant in self.variants],
            "classification": [r for r in rows if not r["transfer"] and r["kind"] == "clip"],
            "localisation": [r for r in rows if not r["transfer"] and r["kind"] == "seconds"],
            "transfer": [r for r in rows if r["transfer"]],
            "retrieval": self._retrieved() if "retrieval" in self.options.parts else [],
        }
        return found | (self._generated() if "generation" in self.options.parts else {"generation": [], "pictures": []})

    def inputs(self) -> list[dict[str, Any]]:
        """Every file that was read, by name and hash."""
        model = RunFolder(self.path).model if self.path.is_dir() else self.path
        files = [("checkpoint", model), ("data", self.data), *(("artefact", path) for path in self.artefacts)]
        files += [("transfer", t.test.path) for t in self.trials if t.test.path != self.data]
        return [
            {"role": role, "name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
            for role, path in dict.fromkeys(files)
            if path.is_file()
        ]

    # -- what is evaluated ------------------------------------------------------------------------------------------

    def _source(self, codebook: tuple[str, Quantiser] | None, cut: bool) -> CodeSource:
        if codebook is None:
            model, config = load_model(self.path)
            return TrainedModel(model, config, device_of(self.options.device))
        key, book = codebook
        level = book.levels[0]
        plain = len(book.levels) == 1 and book.heads == 1 and book.width == book.dim and book.metric == "euclidean"
        if cut and not (plain and level.kept is None and level.rotation is None):
            raise UsageError(
                "--keep and --artefact cut the codebooks of a run, or one plain codebook; "
                f"{printable(key)} of {self.path.name} is pruned already, or has levels, heads or a projection.",
                "Evaluate it as it is with --keep none; toc optimize prunes any codebook.",
            )
        return Codes(book, key, fitting_modalities(self.data, book.width))

    def _modalities(self) -> tuple[str, ...]:
        unknown = [name for name in self.options.modalities if name not in self.source.modalities]
        if unknown:
            raise UsageError(
                f"{self.path.name} has no modality {unknown[0]!r}; it has {', '.join(self.source.modalities)}.",
                "Name one of these with --modality.",
            )
        return self.options.modalities or self.source.modalities

    def _trials(self) -> list[Trial]:
        found = trials(
            self.splits, self.options.tasks, self.options.transfer if "transfer" in self.options.parts else ()
        )
        for trial in found:
            if trial.val is None and not trial.transfer:
                text = f"{trial.task.name}: no validation split has these labels; every fifth clip of "
                self.warnings.append(("held_out", f"{text}{printable(trial.train.name)} validates instead."))
        if not found and set(self.options.parts) & PROBED:
            have = ", ".join(map(printable, self.splits.names)) or "none"
            text = f"{self.data.name} has no labels with a train and a test split; its splits are {have}."
            if self.options.parts != PARTS:
                raise InputError(text, "Name them, --task LABEL=TRAIN:VAL:TEST, or ask for --part retrieval.")
            self.warnings.append(("no_labels", f"{text} Classification, localisation and transfer are left out."))
        return found

    def _scoring_split(self) -> str:
        """The split that needs no labels: the one asked for, the run's own training split, or that of the first task."""
        if self.options.scoring_split:
            return self.options.scoring_split
        own = self.source.config.train.train_split if isinstance(self.source, TrainedModel) else "train"
        candidates = [own, "train", *(trial.train.name for trial in self.trials), *self.splits.names]
        return next(name for name in candidates if name in self.splits.names)

    def _variants(self, artefacts: Mapping[Path, Pruned]) -> list[Variant]:
        options = self.options
        if isinstance(self.source, Codes) and not options.keep and not artefacts:
            return [forms.full(self.source.books)]  # any codebook can be read as it is
        with self.progress("encoding", len(self.modalities), "modalities") as advance:
            readings = {}
            for name in self.modalities:
                readings[name] = self.reader.readings(self.scoring, name)
                advance(1)
        censuses = census.take(self.source, readings)
        self.reader.spreads = {name: own.spread for name, own in censuses.items()}
        criteria = options.criteria if options.keep else ()
        found = forms.variants(censuses, options.keep, criteria, options.weights, options.probe_seeds, options.seed)
        if artefacts:
            found += forms.in_both_forms(censuses, [self._stands(artefacts)], ARTEFACT, None, None)
        return found

    def _stands(self, artefacts: Mapping[Path, Pruned]) -> dict[str, Quantiser]:
        """The pruned form of each codebook that an artefact holds."""
        stands: dict[str, Quantiser] = {}
        for path, pruned in artefacts.items():
            own = {name: pruned[key] for name, key in self.source.keys.items() if key in pruned}
            if not own:
                raise InputError(
                    f"{path.name} holds {', '.join(map(printable, pruned)) or 'nothing'}; the codebooks here are "
                    f"{', '.join(map(printable, self.source.keys.values()))}.",
                    "Prune the run itself: toc optimize RUN/model.safetensors.",
                )
            if own.keys() & stands.keys():
                raise UsageError(
                    f"{path.name} prunes a codebook that another artefact prunes.", "Evaluate one at a time."
                )
            stands |= own
        return stands

    # -- the parts --------------------------------------------------------------------------------------------------

    def _probed(self) -> list[dict[str, Any]]:
        wanted = {"clip": "classification", "seconds": "localisation"}
        parts = self.options.parts
        chosen = [t for t in self.trials if ("transfer" if t.transfer else wanted[t.task.kind]) in parts]
        plan = probing.courses(self.reader, chosen, self.modalities)
        self.warnings += [("no_labelled_clip", text) for text in probing.mute(self.reader, chosen, self.modalities)]
        with self.progress("probing", len(plan) * len(self.variants) * len(self.configs), "probes") as advance:
            return probing.entries(self.reader, plan, self.variants, self.configs, self.options.seed, advance)

    def _retrieved(self) -> list[dict[str, Any]]:
        opened = [self.splits.open(name) for name in self.options.retrieval_splits] or self._tests(transfer=True)
        found = []
        with self.progress("searching", len(opened), "splits") as advance:
            for split in opened:
                found += retrieval.entries(
                    self.reader, split, self.modalities, self.variants, self.options.relevance, self.options.seed
                )
                advance(1)
        return found

    def _generated(self) -> dict[str, Any]:
        run = self.source
        if not isinstance(run, TrainedModel):
            return self._no_generation("a codebook alone has no decoders")
        names = [name for name in self.modalities if name in run.decoded]
        if len(names) < 2:
            text = "the run was trained with weights.fine_reconstruction = 0, so it has no decoders"
            return self._no_generation(text if not run.decoded else "it needs two of " + ", ".join(run.decoded))
        tests = self._tests(transfer=False)
        part = generation.Generation(run, self.reader, self.scoring, self.configs, self.options.seed)
        with self.progress("generating", len(tests) * len(names) * (len(names) - 1), "pairs") as advance:
            rows = part.entries(self.trials, tests, self.modalities, self.variants, advance)
        return {"generation": rows, "pictures": self._pictures(run, part, names)}

    def _tests(self, transfer: bool) -> list[Split]:
        """The test splits of the tasks, with or without those of a transfer; else one by name, else the scoring split."""
        here = (t for t in self.trials if t.test.path == self.data)
        own = dict.fromkeys(t.test for t in here if transfer or not t.transfer)
        named = [name for name in (*_test_names(self.splits.names), "val") if name in self.splits.names]
        return list(own) or [self.splits.open(named[0]) if named else self.scoring]

    def _pictures(self, run: TrainedModel, part: generation.Generation, names: Sequence[str]) -> list[dict[str, Any]]:
        first = next((trial for trial in self.trials if not trial.transfer), None)
        seen = pictures.seen_modality(self.scoring, names)
        if first is None or seen is None or seen not in names:
            return []
        sides = {"generated": self.variants[0]}
        cut = next((v for v in self.variants if v.form == "subspace" and v.control is None), None)
        if cut is not None and part.quantised:
            sides["pruned"] = cut
        shared = {
            name: {side: next(part.shared(first.test, name, variant)) for side, variant in sides.items()}
            for name in names
        }
        usual = generation.typical(run, self.scoring, seen)
        return pictures.pictures(run, first.train, first.test, shared, seen, usual)

    def _no_generation(self, reason: str) -> dict[str, Any]:
        self.warnings.append(("no_generation", f"Generation is left out: {reason}."))
        return {"generation": [], "pictures": []}


def _test_names(names: Sequence[str]) -> list[str]:
    """Splits that are tests by name."""
    return sorted((name for name in names if "test" in name), key=len)


def fitting_modalities(data: Path, width: int) -> tuple[str, ...]:
    """The modalities that every split has as features of a width. InputError that names the widths where none is."""
    specs = [open_split(data, name).specs for name in split_names(data)]
    fitting = [{name for name, spec in own.items() if spec.width == width and not spec.spatial} for own in specs]
    found = sorted(set.intersection(*fitting)) if fitting else []
    if not found:
        widths = sorted({f"{name} {spec.width}" for own in specs for name, spec in own.items()})
        raise InputError(
            f"No modality of {data.name} has the codebook's width {width} in every split: {', '.join(widths) or 'none'}.",
            "toc evaluate RUN --save-features writes the features of a run.",
        )
    return tuple(found)
