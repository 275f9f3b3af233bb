"""What a run of `toc optimize` found and will write: checked aside, then published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from toc_cli.errors import UsageError
from toc_cli.io.artefact import write_artefact, write_record
from toc_cli.io.atomic import sha256
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families.base import Mode
from toc_cli.io.families.lean import left_out
from toc_cli.io.families.levels import load_hint as level_hint
from toc_cli.io.families.offered import supported
from toc_cli.io.features import Features
from toc_cli.io.names import printable
from toc_cli.io.publish import Publication
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.selection import size_text
from toc_cli.pipeline.artefacts import as_artefact
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.emission import edits_for, verify_in_library, write_checkpoint
from toc_cli.pipeline.options import AUTO, Options
from toc_cli.pipeline.outputs import Outputs
from toc_cli.pipeline.ranks import Ranks
from toc_cli.pipeline.sample import sampled_rows
from toc_cli.pipeline.source import Fit
from toc_cli.pipeline.study import Study
from toc_cli.pipeline.vocabulary import Vocabulary

VERIFIED_ROWS = 2048


@dataclass
class Plan:
    """What a run found and will write: the chosen dimensions, the pruned quantisers, the record."""

    checkpoint: Checkpoint
    features: Features
    options: Options
    chosen: list[tuple[Study, Choice]]
    record: dict[str, Any]
    outputs: Outputs | None = None
    ranks: Ranks = field(default_factory=Ranks)
    decode: Callable[[Mapping[str, Path]], dict[str, Any]] | None = None
    """The record's `outcome`, from the written copies by mode; None where no output is compared."""
    vocabulary: Vocabulary | None = None
    """The language model whose rows follow the codes."""

    @property
    def kept(self) -> list[torch.Tensor]:
        """Per codebook the kept dimensions (L or 1, H, D') int64, ascending."""
        return [choice.kept for _, choice in self.chosen]

    @property
    def scores(self) -> list[torch.Tensor]:
        """Per codebook the scores (L or 1, H, D) float64."""
        return [torch.from_numpy(choice.table("score")) for _, choice in self.chosen]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Per codebook the record's entry: before, after, intervals, baselines."""
        return self.record["codebooks"]

    @property
    def codebook(self) -> Quantiser:
        """The pruned quantiser of the first codebook, for `toc_cli.quantize`."""
        return self.chosen[0][1].form

    @property
    def load_hints(self) -> list[str]:
        """What the owner of a sliced file without a config must write in the model's constructor, per codebook."""
        if self.checkpoint.config is not None:
            return []
        hints = []
        for study, choice in self.chosen:
            book, codes = study.source.book, study.source.codes
            if book.load_hint is not None and choice.count < study.full.dim:
                hints.append(book.load_hint(choice.count))
            if codes is not None:
                hints.append(f"{codes.about['after'][0]} codes in place of {codes.about['before'][0]}")
            if study.source.whole is not None:
                hints.append(level_hint(study.source.whole.book, book.levels))
        return hints

    @property
    def searches(self) -> list[str]:
        """What `auto` chose, per codebook for which it did."""
        found = []
        for (study, choice), entry in zip(self.chosen, self.record["codebooks"], strict=True):
            if account := entry["auto"]:
                split, who = (
                    account["split"],
                    "auto" if AUTO in (self.options.criterion, self.options.keep) else "--bytes",
                )
                where = "other units" if split["apart"] else "the same units"
                found.append(
                    f"{printable(study.source.book.shown, 120)}: {who} took {account['criterion']} at {size_text(choice.size)} of "
                    f"{study.full.dim} dimensions on {split['chosen_on']:,} rows; all figures are of {split['measured_on']:,} rows "
                    f"of {where}."
                )
        return found

    @property
    def token_warnings(self) -> list[str]:
        """What the written forms do to a model trained on the tokens, per codebook whose tokens change."""
        changing = [mode for mode in self.options.emit if mode in ("masked", "sliced")]
        found = []
        for (study, _), entry in zip(self.chosen, self.record["codebooks"], strict=True):
            book = study.source.book
            moved = 1 - entry["after"]["token_agreement"]
            if changing and moved > 0:
                offered = supported(self.checkpoint, book)["consumer"] == ""
                found.append(
                    f"{printable(book.shown, 120)}: {moved:.1%} of the tokens change in the {' and '.join(changing)} form: "
                    "a language model or any other model trained on the old tokens must be trained on the new ones"
                    + (" (--emit consumer keeps every token)." if offered else ".")
                )
        return found

    def size(self, mode: Mode) -> int:
        """Bytes that an emit mode will take, headers aside."""
        pairs = [(study.source, choice) for study, choice in self.chosen]
        if mode == "codebook":
            tensors = as_artefact(self.chosen, self.options, []).tensors
            return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
        changed = edits_for(self.checkpoint, pairs, mode, self.options, self._first(mode))
        added = sum(tensor.numel() * tensor.dtype.itemsize for tensor in changed.tensors.values())
        gone = changed.without | changed.tensors.keys()
        return added + sum(info.nbytes for key, info in self.checkpoint.infos.items() if key not in gone)

    def _first(self, mode: Mode) -> Edits:
        """What a form changes beside its codebooks: the rows of a language model in the checkpoint itself."""
        inside = self.vocabulary is not None and self.vocabulary.inside and mode == "sliced"
        return self.vocabulary.edits(self.chosen[0][0].source) if inside and self.vocabulary else Edits()

    @property
    def left_out(self) -> str:
        """What `--lean` leaves out of the edited copies, in a sentence; "" without it."""
        infos = self.checkpoint.infos
        found = left_out(self.checkpoint, [study.source.book for study, _ in self.chosen]) if self.options.lean else {}
        parts = [
            f"{kind} {sum(infos[key].nbytes for key in keys):,} bytes ({len(keys):,})" for kind, keys in found.items()
        ]
        return f"--lean leaves out (tensors): {', '.join(parts) or 'nothing'}." if self.options.lean else ""

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the artefact to `path` and the record beside it. UsageError if either exists and not `force`."""
        self.outputs = Outputs(self.checkpoint.path, ("codebook",), Path(path), force)
        return self.write()

    def write(self) -> list[Path]:
        """Write, check and verify every output aside, then publish all, the record last; on any failure what stood before stands.
        Returns the files."""
        if self.outputs is None:
            raise UsageError("The plan has no outputs.", "Use plan.save(path).")
        outputs = self.outputs
        if not self.ranks.writes:
            return []
        outputs.refuse_what_stands(inputs_read(self.checkpoint, self.features))
        with Publication(outputs.stem, wait=outputs.force) as publication:
            with publication.told():
                written = self._write(outputs.aside(publication.new))
            publication.publish(outputs.record, force=outputs.force)
        return [outputs.stem.parent / path.relative_to(publication.new) for path in written]

    def _larger(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The warning of a sliced copy that takes more bytes than the input."""
        written = sum(entry["bytes"] for entry in entries if entry["mode"] == "sliced")
        came = sum(path.stat().st_size for path in self.checkpoint.files)
        if written <= came:
            return None
        text = f"The sliced copy takes {written:,} bytes, more than the {came:,} of the input: what it adds outweighs what it cuts."
        return {"id": LARGER, "codebook": None, "text": text}

    def _write(self, aside: Outputs) -> list[Path]:
        chosen = [(study.source, choice) for study, choice in self.chosen]
        samples = [_sample(study) for study, _ in self.chosen]
        written, entries = [], []
        for mode in aside.checkpoints:
            target = aside.of(mode)
            files = write_checkpoint(self.checkpoint, chosen, mode, target, self.options, samples, self._first(mode))
            written += files
            entries += [_output(mode, file, target) for file in files]
        if self.vocabulary is not None and (beside := aside.language_model) is not None:
            files = self.vocabulary.model.write(beside, self.vocabulary.edits(chosen[0][0]))
            self.vocabulary.model.refuse_changes()
            written += files
            entries += [_output("vocab", file, beside) for file in files]
        write_artefact(aside.artefact, as_artefact(self.chosen, self.options, self.record["inputs"]))
        if (larger := self._larger(entries)) is not None:
            self.record["warnings"].append(larger)
        self.record["outputs"] = [_output("codebook", aside.artefact, aside.artefact), *entries]
        if aside.verify:
            self.record["verified"] = [
                verify_in_library(aside.of(mode), mode, id, source, choice, sample, self.options)
                for mode in aside.checkpoints
                for id, ((source, choice), sample) in enumerate(zip(chosen, samples, strict=True))
            ]
        if self.decode is not None:
            self.record["outcome"] = self.decode({mode: aside.of(mode) for mode in aside.checkpoints})
        self.checkpoint.refuse_changes()
        write_record(aside.record, self.record)
        return [*written, aside.artefact, aside.record]


LARGER = "sliced_larger"


def inputs_read(ckpt: Checkpoint, features: Features) -> list[Path]:
    """Every file that a run reads, which no output may be."""
    return [ckpt.path, *ckpt.files, *features.files]


def _output(mode: str, file: Path, target: Path) -> dict[str, Any]:
    name = file.name if file == target or file.parent == target.parent else f"{target.name}/{file.name}"
    return {"mode": mode, "name": name, "bytes": file.stat().st_size, "sha256": sha256(file)}


def _sample(study: Study) -> tuple[Fit, torch.Tensor]:
    return study.fits[0], sampled_rows(study, VERIFIED_ROWS)
