"""README's list of what is read is the table's, and the table says no more than the tests show."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from conftest import ROOT
from published_layouts import PUBLISHED
from toc_cli.io.families import projected, rows, simvq
from toc_cli.io.families.image_vq import _KINDS as IMAGE_KINDS
from toc_cli.io.families.listing import FORMULA, LIBRARY, LISTED, markdown

PACKAGE = ROOT / "toc_cli" / "io" / "families"
UNLISTED = {"bare array", "unknown"}
"""What is read without a family."""


def literals(node: ast.expr) -> set[str]:
    """The strings that an expression can be: itself, or either side of a choice."""
    if isinstance(node, ast.IfExp):
        return literals(node.body) | literals(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def named_families() -> set[str]:
    """Every literal that a family's file gives as `family=`, and the names in the tables of layouts."""
    found = {row.family for row in rows.ROWS} | {kind.family for kind in IMAGE_KINDS.values()}
    found |= {spelt.family for spelt in simvq._SPELLINGS} | {kind.family for kind in projected._KINDS}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "family":
                found |= literals(node.value)
    return found


def test_readme_has_the_list() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    between = readme.partition("<!-- read: toc_cli/io/families/listing.py -->\n")[2].partition("\n<!-- /read -->")[0]
    assert between == markdown(), "put toc_cli.io.families.listing.markdown() between the marks"


def test_every_family_is_listed_once() -> None:
    listed = [family for one in LISTED for family in one.families]
    assert len(listed) == len(set(listed))
    assert named_families() - set(listed) <= UNLISTED


def test_what_a_formula_shows_has_its_formula() -> None:
    shown = {layout.family for layout in PUBLISHED}
    assert {family for one in LISTED if one.shown == FORMULA for family in one.families} <= shown


@pytest.mark.parametrize("entry", [one for one in LISTED if one.shown == LIBRARY], ids=lambda one: one.name)
def test_what_a_library_shows_is_tested_with_it(entry: object) -> None:
    modules = {
        "vector-quantize-pytorch": "vector_quantize_pytorch", "diffusers": "diffusers", "faiss": "faiss", "scikit-learn": "sklearn",
        "FCID of toc": "toc_cli.fcid",
    }  # fmt: skip
    name = entry.name  # type: ignore[attr-defined]
    module = next((module for start, module in modules.items() if name.startswith(start)), "transformers")
    assert any(
        module in path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)
    )
