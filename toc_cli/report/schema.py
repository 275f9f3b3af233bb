"""The shipped JSON Schemas, and the check that a file really is what it claims to be."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from toc_cli.errors import InputError
from toc_cli.io.names import printable


@cache
def load(kind: str) -> dict[str, Any]:
    """The JSON Schema `record` (what `toc optimize` writes) or `report` (what `toc report --format json` prints)."""
    return json.loads(files("toc_cli.report").joinpath(f"{kind}.schema.json").read_text(encoding="utf-8"))


def validate(value: Any, kind: str = "record") -> None:
    """Raise an InputError that names the first place where `value` breaks the schema or contradicts itself."""
    import jsonschema

    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(load(kind)).iter_errors(value))
    if problem is not None:
        raise InputError(
            f"Not a {kind} of a schema this toc reads: {_place(problem.absolute_path)} {problem.message[:200]}."
        )
    if kind == "record":
        for trait in ("id", "key"):
            named = [codebook[trait] for codebook in value["codebooks"]]
            if len(set(named)) < len(named):
                raise InputError(f"Two codebooks have one {trait}.")
        for codebook in value["codebooks"]:
            _validate_lengths(codebook)
        _validate_evaluation(value.get("evaluation") or {})
        _validate_tokens((value.get("tokens") or {}).get("datasets", ()))


def _place(path: Any) -> str:
    return "at " + "/".join(str(part)[:60] for part in path) + ":" if path else "at the top:"


def _validate_lengths(codebook: dict[str, Any]) -> None:
    """What a schema cannot say: arrays that belong together are equally long, indices lie inside."""
    where = f"codebook {codebook['id']}"
    if codebook["kept_dim"] > codebook["dim"]:
        raise InputError(f"{where} keeps {codebook['kept_dim']} of {codebook['dim']} dimensions.")
    for name in ("kept", "order", "score", "similarity", "variance"):
        for level in codebook.get(name, ()):
            for head in level:
                if len(head) > codebook["dim"]:
                    raise InputError(f"{where}: {name} has {len(head)} entries for {codebook['dim']} dimensions.")
    for name in ("kept", "order"):
        if any(index >= codebook["dim"] for level in codebook.get(name, ()) for head in level for index in head):
            raise InputError(f"{where}: {name} names a dimension beyond {codebook['dim'] - 1}.")
    for curve in (codebook.get("sweep") or {"criteria": {}})["criteria"].values():
        if any(len(points) != len(codebook["sweep"]["kept_dims"]) for points in curve.values()):
            raise InputError(f"{where}: the sweep's curves and kept_dims differ in length.")
    for figure in codebook.get("figures", ()):
        _validate_figure(figure, where)


def _validate_evaluation(found: dict[str, Any]) -> None:
    """Results name variants that are described; pictures hold as many bytes as their shape says."""
    ids = {variant["id"] for variant in found.get("variants", ())}
    for part in ("classification", "localisation", "transfer", "retrieval", "generation"):
        for row in found.get(part, ()):
            unknown = row["results"].keys() - ids
            if unknown:
                raise InputError(f"evaluation: {part} has results of {sorted(unknown)[0][:60]!r}, which no variant is.")
    for row in found.get("retrieval", ()):
        if row["vectors"] == "codes" and row["results"].keys() != ids:
            raise InputError("evaluation: a row of retrieval by codes leaves out a variant.")
    for picture in found.get("pictures", ()):
        for side in (side for side in ("true", "generated", "pruned") if side in picture):
            try:
                held = len(base64.b64decode(picture[side], validate=True))
            except binascii.Error:
                held = -1
            if held != math.prod(picture["shape"]) or picture["shape"][3:] not in ([], [3]):
                raise InputError(f"evaluation: the {side} frames of a picture are not {picture['shape']}.")


def _validate_tokens(datasets: Sequence[dict[str, Any]]) -> None:
    """Counts of tokens add up: their checks would otherwise hold numbers that no tokens have."""
    if len({dataset["name"] for dataset in datasets}) < len(datasets):
        raise InputError("tokens: two datasets have one name.")
    for dataset in datasets:
        where = f"tokens of {printable(dataset['name'], 60)}"
        tables = dataset["tables"]
        if not tables or len({(table["level"], table["head"]) for table in tables}) < len(tables):
            raise InputError(f"{where}: {len(tables)} tables are not one per level and head.")
        for table in tables:
            if table["used_codes"] > table["codes"]:
                raise InputError(f"{where}: a table uses {table['used_codes']} of {table['codes']} codes.")
        for name in ("codes", "used_codes"):
            if dataset[name] != sum(table[name] for table in tables):
                raise InputError(f"{where}: {name} is {dataset[name]}, and its tables' do not add up to that.")
        for ids in dataset["tuples"] or ():
            if ids["distinct"] > dataset["rows"] or ids["largest"] > dataset["rows"]:
                raise InputError(f"{where}: more ids of {ids['length']} tokens than its {dataset['rows']} rows.")


def _validate_figure(figure: dict[str, Any], where: str) -> None:
    ranks, points = figure["rank_frequency"], figure["pca_map"]
    if any(side is not None and len(side) != len(ranks["ranks"]) for side in (ranks["before"], ranks["after"])):
        raise InputError(f"{where}: rank_frequency has counts for other than its {len(ranks['ranks'])} ranks.")
    if not len(points["x"]) == len(points["y"]) == len(points["usage"]):
        raise InputError(f"{where}: pca_map has coordinates and usage of different lengths.")
    if any(
        len(side["rank"]) != len(side["value"]) for side in (figure["spectrum"]["before"], figure["spectrum"]["after"])
    ):
        raise InputError(f"{where}: spectrum has ranks and values of different lengths.")
    codes = figure["cosine"]["codes"]
    for side in ("before", "after"):
        try:
            found = len(base64.b64decode(figure["cosine"][side], validate=True))
        except binascii.Error:
            found = -1
        if found != codes * (codes - 1) // 2:
            raise InputError(f"{where}: the cosine picture {side} is not a triangle of {codes} codes.")
