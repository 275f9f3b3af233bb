"""Copies of a codebook in its file, running averages beside the model: found as one codebook, edited alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Site
from toc_cli.io.names import printable

AVERAGED = re.compile(r"(?:^|[/._])(?:ema|model_ema|ema_model|averaged)(?:$|[/._])|_ema$|^ema_")
"""A section or prefix that holds a running average of the model."""


def join(ckpt: Checkpoint, found: list[Codebook], wanted: Collection[str] = ()) -> list[Codebook]:
    """Codebooks whose keys differ by the prefix of an average alone become one with a copy.

    Read is the average, as libraries load it, or the one of which a key is `wanted`; a warning names the other.
    """
    followers: set[int] = set()
    copies: dict[int, list[tuple[str, str]]] = {}  # place of what is read -> (its prefix, that of a copy)
    for place, other_place, prefixes in _averages(found):
        one, other = found[place], found[other_place]
        if _holds(other, wanted) and not _holds(one, wanted):
            followers.add(place)
            copies.setdefault(other_place, []).append((prefixes[1], prefixes[0]))
        else:
            followers.add(other_place)
            copies.setdefault(place, []).append(prefixes)
    joined = []
    for place, one in enumerate(found):
        if place in copies and place not in followers:
            roots = copies[place]
            others = ", ".join(printable(own) for _, own in roots)
            note = f"{printable(roots[0][0])} is read; {others} holds another copy, which is edited along (--codebook picks it)"
            joined.append(
                replace(one, root=roots[0][0], copies=tuple(own for _, own in roots), warnings=(*one.warnings, note))
            )
        elif place not in followers:
            joined.append(_without_dots(ckpt, one))
    return joined


def _holds(book: Codebook, keys: Collection[str]) -> bool:
    return any(key in keys for level in book.keys for key in level)


def _averages(found: list[Codebook]) -> list[tuple[int, int, tuple[str, str]]]:
    """(place of an average, place of what it averages, their prefixes): each average with those it shares the most of its name with,
    and none that shares more with another average (`ema.0.vq` is of `model.0.vq`, not of `model.1.vq`)."""
    by_end: dict[tuple[object, ...], list[int]] = {}
    for place, book in enumerate(found):
        parts = _parts(book)
        for at in range(len(parts)):
            by_end.setdefault((*_form(book), *parts[at:]), []).append(place)
    met: dict[
        int, list[tuple[int, int, tuple[str, str]]]
    ] = {}  # place of what is averaged -> (length of the end, average, prefixes)
    for place, one in enumerate(found):
        parts = _parts(one)
        for at in (at for at in range(1, len(parts)) if _averaged("".join(parts[:at]))):
            ends = by_end.get((*_form(one), *parts[at:]), ())
            pairs = [(other, _prefixes(one, found[other], len(parts) - at)) for other in ends if other != place]
            theirs = [(other, both) for other, both in pairs if both is not None and not _averaged(both[1])]
            for other, both in theirs:
                met.setdefault(other, []).append((len(parts) - at, place, both))
            if theirs:
                break
    return sorted(
        (place, other, both)
        for other, averages in met.items()
        for shared, place, both in averages
        if shared == max(averages)[0]
    )


def _averaged(prefix: str) -> bool:
    return bool(AVERAGED.search(prefix.rstrip("/.")))


def _parts(book: Codebook) -> list[str]:
    return re.split(r"(?<=[/.])", book.keys[0][0])


def _prefixes(one: Codebook, other: Codebook, shared: int) -> tuple[str, str] | None:
    """The prefixes before the last `shared` parts of their first keys; None where the keys differ otherwise, or by a number."""
    first, second = ("".join(_parts(book)[:-shared]) for book in (one, other))
    moved = tuple(tuple(second + key.removeprefix(first) for key in level) for level in one.keys)
    numbers = [re.findall(r"\d+", prefix) for prefix in (first, second)]
    return (first, second) if moved == other.keys and (numbers[0] == numbers[1] or not all(numbers)) else None


def _form(book: Codebook) -> tuple[object, ...]:
    return book.family, book.num_codes, book.dim, book.heads


def _without_dots(ckpt: Checkpoint, one: Codebook) -> Codebook:
    """Lightning's LitEma keeps `model_ema.` copies whose names have lost their dots."""
    info = ckpt.infos[one.keys[0][0]]
    root = info.key[: len(info.key) - len(info.name)]
    if f"{root}model_ema.{info.name.replace('.', '')}" in ckpt.infos:
        return replace(one, root=root, copies=(f"{root}model_ema.",))
    return one


def sites_of(ckpt: Checkpoint, codebook: Codebook, *roles: str) -> Iterator[Site]:
    """The sites of some roles, in the codebook itself and in each of its copies."""
    for site in codebook.sites:
        if site.role in roles:
            yield site
    for copy in codebook.copies:
        for site in codebook.sites:
            key = copy_key(ckpt, codebook.root, copy, site.key)
            if site.role in roles and key:
                names = {name: copy_key(ckpt, codebook.root, copy, getattr(site, name)) for name in ("counts", "bias")}
                yield Site(**{**site.__dict__, **names, "key": key})


def copy_key(ckpt: Checkpoint, root: str, copy: str, key: str | None) -> str | None:
    """The key of a copy (`model/x` for `ema/x`; Lightning's LitEma writes its names without dots), None where there is none."""
    if key is None or not key.startswith(root):
        return None
    rest = key[len(root) :]
    return next((name for name in (copy + rest, copy + rest.replace(".", "")) if name in ckpt.infos), None)
