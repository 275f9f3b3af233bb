"""One word for one thing: a public class of the package is defined in one module."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "toc_cli"
SHARED = {
    "Codebook": "of a checkpoint, and of the compiled search, which packs its codes",
    "Entry": "of features, and of the glossary",
    "Found": "by the nearest-code search, and by the search for a model's tokens",
    "Group": "of features, and of pictures",
    "Listed": "a checkpoint read from a list of tensors, and a family in the list of families",
    "Packed": "a codebook of the compiled search, and a checkpoint in an archive",
    "Place": "of a file of features, and of a codebook's tokens in a row",
    "Row": "of a table of the report, and of the table of families",
    "Rows": "sampled for a criterion, and of one modality in a pass",
    "Run": "of a library on a checkpoint, and a record that is reported",
    "Sample": "of a pass, of a trial of readings, and of a report's outcome",
    "Source": "a codebook that quantises in the pipeline, and an array of features",
    "Sums": "of blocks against the unpruned quantiser, and of criteria over a stream",
    "Table": "of record batches, and an inert dictionary of a pickle",
    "Trial": "of a reading, and of a task",
}
"""Names that two rooms still share, and what each of them means: a list that only shrinks."""


def test_a_public_class_stands_in_one_module() -> None:
    homes = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(PACKAGE)))
    shared = {name: places for name, places in homes.items() if len(places) > 1}
    assert not {name: places for name, places in shared.items() if name not in SHARED}
    assert not set(SHARED) - set(shared), "names that one module has now: take them off the list"
