"""The selections of one size that were measured beside the chosen one, what they cost, and which of the asked forms can take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rival:
    """Another selection of the same size that was measured beside the chosen one."""

    criterion: str
    excess: float | None
    agreement: float | None
    forms: tuple[str, ...] = ("codebook",)
    """The forms that this family can write of it; the artefact alone where the record does not say."""
    refused: tuple[str, ...] = ()
    """Those of the asked forms that cannot take it."""


def chosen(record: Mapping[str, Any], book: Mapping[str, Any]) -> str:
    """The criterion of a codebook's selection: the one asked for, or the one that `auto` found."""
    return str((book.get("auto") or {}).get("criterion") or record["options"].get("criterion"))


def rivals(record: Mapping[str, Any], book: Mapping[str, Any]) -> list[Rival]:
    """The baselines of a codebook's entry, and what `--criterion auto` tried at the size taken.

    `auto` tried its candidates on another part of the sample than the selection was measured on, so their figures are moved by what
    the chosen one differs between the two parts: candidates are compared on the part where all of them were measured.
    """
    asked = [mode for mode in record["options"].get("emit", ()) if mode != "codebook"]
    own, tried = chosen(record, book), (book.get("auto") or {}).get("candidates") or {}
    measured = {name: figures for name, figures in book["baselines"].items() if name != "random"}
    if own in tried:
        moved = {
            name: {of: _moved(figures[of], tried[own][of], book["after"].get(of)) for of in figures}
            for name, figures in tried.items()
        }
        measured = {**moved, **measured}
    found = []
    for name, figures in measured.items():
        if name == own:
            continue
        forms = offered(book, name)
        refused = tuple(mode for mode in asked if mode not in forms)
        found.append(Rival(name, figures.get("excess_distortion"), figures.get("token_agreement"), forms, refused))
    return found


def cheapest(record: Mapping[str, Any], book: Mapping[str, Any]) -> Rival | None:
    """Of the rivals that cost less, the cheapest of those that the most asked forms can take."""
    return min(cheaper(record, book), key=lambda rival: (len(rival.refused), rival.excess or 0.0), default=None)


def cheaper(record: Mapping[str, Any], book: Mapping[str, Any]) -> list[Rival]:
    """The rivals that cost less than the interval of the chosen selection.

    `auto` chose by its own measure among what every asked form can take, so of those only one that keeps as many tokens counts.
    """
    bounds = book["ci95"]["after"].get("excess_distortion")
    if not bounds:
        return []
    kept = book["after"].get("token_agreement")
    by_tokens = (book.get("auto") or {}).get("by") == "token_agreement"

    def counts(rival: Rival) -> bool:
        if rival.excess is None or rival.excess >= bounds[0]:
            return False
        return bool(rival.refused) or not by_tokens or (rival.agreement or 0.0) >= (kept or 0.0)

    return [rival for rival in rivals(record, book) if counts(rival)]


def offered(book: Mapping[str, Any], criterion: str) -> tuple[str, ...]:
    """The forms that this family can write of a criterion's selection."""
    forms = (book.get("forms") or {}).get(criterion)
    return tuple(mode for mode, reason in forms.items() if not reason) if forms else ("codebook",)


def listed(modes: Sequence[str]) -> str:
    """`codebook, masked or sliced`."""
    return " or ".join(filter(None, [", ".join(modes[:-1]), modes[-1]]))


def _moved(value: float | None, own: float | None, after: float | None) -> float | None:
    return None if value is None or own is None or after is None else value - own + after
