"""Tables that no family claims: bare arrays, well-known names, and any tensor the user names with `--codebook`.

Legend: L levels, H heads, K codes, D dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.base import Checkpoint, TensorInfo
from toc_cli.io.families import absent
from toc_cli.io.families.base import Codebook, Metric, Parts, Site, Stack
from toc_cli.io.families.names import Section, code_axis, is_statistic, natural, sections, twins
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

AROUND = "the layers around the codebook are not in this file, or not known"
NO_METRIC = "the metric is not in the file: read as euclidean (--metric cosine or dot says otherwise)"
_STEMS = r"(?:\w*quantizer?|vq\w*|\w*codebooks?|\w*quantization\w*)"
_TABLES = r"(?:code_?books?|embeddings?|embed|centroids?|codes|codevectors|emb)"
NAMES = (
    rf"(?:.*\.)?{_STEMS}\.(?:.*\.)?{_TABLES}(?:\.weight)?",
    rf"(?:.*\.)?{_STEMS}\.(?:\d+\.)?_?codebook\.embed",
    r"(?:.*\.)?\w*codebooks?\.(?:\d+\.)?weight",
    r"(?:.*\.)?(?:layers|levels|quantizers|stages|heads|groups)\.\d+\.(?:code_?book|embedding|centroids?|_?codebook\.embed)(?:\.weight)?",
    r"(?:.*\.)?(?:code_?books?|codevectors|centroids?|code_?book_vectors)(?:[._]?\d+)?(?:\.weight)?",
)
"""Names that hold a codebook in repositories of no fixed family."""
LOOSE = re.compile(r"quant|codebook|code_book|vq|bottleneck|centroid|cluster|embed", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Which letters each stored axis carries, as in `1KD`, `HKD`, `(HK)D`; sizes that the shape cannot tell: `(HK)D,H=2`."""

    axes: tuple[str, ...]
    sizes: Mapping[str, int]

    @classmethod
    def parse(cls, text: str) -> Layout:
        """UsageError where `text` is no layout."""
        order, *options = (part.strip() for part in text.split(","))
        axes = tuple(group.strip("()") for group in re.findall(r"\([A-Z]+\)|[A-Z1]", order))
        letters = [letter for axis in axes for letter in axis if letter != "1"]
        sizes = {option[0]: int(option[2:]) for option in options if re.fullmatch(r"[HL]=[1-9]\d*", option)}
        spelt = re.fullmatch(r"(?:\([A-Z]+\)|[A-Z1])+", order) and len(sizes) == len(options)
        if not spelt or len(set(letters)) < len(letters) or not {"K", "D"} <= set(letters) <= set("LHKD"):
            hint = "Axes are named in order: KD, DK, HKD, KHD, LKD, 1KD, or (HK)D,H=2 where one axis holds heads times codes."
            raise UsageError(f"--layout {text} is not a layout.", hint)
        if any(axis not in ("L", "H", "K", "D", "1", "HK", "HD", "LK") for axis in axes):
            raise UsageError(
                f"--layout {text}: only (HK), (HD) and (LK) can share an axis.", "Store the other axes apart."
            )
        return cls(axes, sizes)

    def split(self, info: TensorInfo) -> dict[str, int]:
        """Size of every letter for a stored shape; L and H default to 1."""
        text = "".join(axis if len(axis) == 1 else f"({axis})" for axis in self.axes)
        if len(self.axes) != len(info.shape):
            raise UsageError(
                f"--layout {text} names {len(self.axes)} axes, {printable(info.key)} has shape {info.shape}.",
                "Name every axis; 1 for length one.",
            )
        found = {"L": 1, "H": 1, **self.sizes}
        for axis, length in zip(self.axes, info.shape, strict=True):
            if len(axis) == 2:
                if axis[0] not in self.sizes or length % self.sizes[axis[0]]:
                    raise UsageError(
                        f"--layout {text} must say how many {axis[0]} the axis of length {length} holds.",
                        f"Add ,{axis[0]}=2.",
                    )
                found[axis[1]] = length // self.sizes[axis[0]]
            elif axis != "1":
                found[axis] = length
            elif length != 1:
                raise UsageError(
                    f"--layout {text} expects length 1 where {printable(info.key)} has shape {info.shape}.",
                    "Name the axis L or H.",
                )
        return found


def find(ckpt: Checkpoint, claimed: Collection[str] = ()) -> list[Codebook]:
    """Bare arrays, and tables under names that hold nothing but codebooks, other than those that are claimed by a family."""
    numbered = all(info.key == "" or info.key.isdecimal() for info in ckpt.infos.values())
    bare = _bare(ckpt) if not claimed and (numbered or ckpt.container in ("npy", "npz", "h5")) else []
    if bare:
        return bare
    return [book for part in sections(ckpt) for book in _named(ckpt, part, claimed)]


def _named(ckpt: Checkpoint, part: Section, claimed: Collection[str]) -> list[Codebook]:
    """The tables of a section under names of codebooks; numbered siblings are one codebook whose stack is unknown."""
    found: dict[str, list[TensorInfo]] = {}
    for name, info in part.infos.items():
        if info.key in claimed or is_statistic(name) or not is_table(info):
            continue
        if any(re.fullmatch(p, name, re.IGNORECASE) for p in NAMES):
            found.setdefault(re.sub(r"\d+", "#", name), []).append(info)
    books = []
    for infos in found.values():
        if absent.grid(ckpt, infos[0]) is not None:
            continue
        if len({info.shape[-1] for info in infos}) > 1:
            books += [table(ckpt, info.key) for info in infos]
        else:
            books.append(stacked(ckpt, [info.key for info in infos]) if len(infos) > 1 else table(ckpt, infos[0].key))
    return books


def is_table(info: TensorInfo) -> bool:
    """Whether a tensor could hold code vectors: floating point, two or three axes, more than one row and dimension."""
    return info.is_floating and len(info.shape) in (2, 3) and sum(n > 1 for n in info.shape) >= 2


def _bare(ckpt: Checkpoint) -> list[Codebook]:
    """The only array of a file, or arrays that differ in a number alone."""
    tables = [info for info in ckpt.infos.values() if is_table(info)]
    if ckpt.container.startswith("npy ") and any(ckpt.infos):
        return []  # an object array holds other things, not codes
    if len(ckpt.infos) == len(tables) == 1:
        return [table(ckpt, tables[0].key)]
    stems: dict[str, list[TensorInfo]] = {}
    for info in tables:
        stems.setdefault(re.sub(r"\d+$", "", info.name), []).append(info)
    for stem, infos in stems.items():
        alone = not stem and len(infos) == len(ckpt.infos)
        if len(infos) > 1 and (alone or re.search(r"code|embed|level|vq|quant|centroid", stem, re.IGNORECASE)):
            return [stacked(ckpt, [info.key for info in infos])]
    return []


def stacked(ckpt: Checkpoint, keys: Sequence[str], metric: Metric | None = None) -> Codebook:
    """Numbered tables as the levels of one residual, with `restack` for what else they may be.

    Raises:
        InputError: tables of different widths.
    """
    keys = sorted(keys, key=natural)
    alone = [table(ckpt, key, metric=metric) for key in keys]
    for key, one in zip(keys, alone, strict=True):
        if one.dim != alone[0].dim or one.heads != alone[0].heads or one.levels > 1:
            raise InputError(
                f"{printable(key)} has shape {ckpt.infos[key].shape}, {printable(keys[0])} {ckpt.infos[keys[0]].shape}: they do not"
                " stack.",
                "--codebook KEY takes one of them.",
            )

    def restack(how: Stack) -> list[Codebook]:
        if how == "independent":
            return alone
        return _levels(alone) if how == "residual" else _heads(alone)

    return replace(_levels(alone)[0], restack=restack)


def _levels(alone: list[Codebook]) -> list[Codebook]:
    """Codebooks of one level each as the levels of one residual."""
    return [
        replace(
            alone[0],
            keys=tuple(one.keys[0] for one in alone),
            num_codes=tuple(one.num_codes[0] for one in alone),
            parts=lambda ckpt: Parts(tuple(one.parts(ckpt).tables[0] for one in alone)),
            residual=True,
            sites=tuple(replace(site, level=level) for level, one in enumerate(alone) for site in one.sites),
            ema_twins=tuple(key for one in alone for key in one.ema_twins),
            warnings=tuple(dict.fromkeys(note for one in alone for note in one.warnings)),
        )
    ]


def _heads(alone: list[Codebook]) -> list[Codebook]:
    """Codebooks of one head each as the heads of one product. UsageError where they have not the same number of codes."""
    import torch

    if len({one.num_codes for one in alone}) > 1 or alone[0].heads > 1:
        counts = ", ".join(str(one.num_codes[0]) for one in alone)
        raise UsageError(
            f"--stack product needs tables of one head with one number of codes, {printable(alone[0].shown)} … have {counts}.",
            "Use --stack residual or independent.",
        )
    return [
        replace(
            alone[0],
            keys=(tuple(one.keys[0][0] for one in alone),),
            heads=len(alone),
            parts=lambda ckpt: Parts((torch.cat([one.parts(ckpt).tables[0] for one in alone]),)),
            sites=tuple(replace(site, head=head) for head, one in enumerate(alone) for site in one.sites),
            ema_twins=tuple(key for one in alone for key in one.ema_twins),
            warnings=tuple(dict.fromkeys(note for one in alone for note in one.warnings)),
        )
    ]


def table(ckpt: Checkpoint, key: str, *, layout: str | None = None, metric: Metric | None = None) -> Codebook:
    """Any tensor as a codebook, by its layout, else by the per-code buffer beside it, else as (…, K, D).

    Raises:
        InputError: not a table of floating-point numbers with at least two axes.
        UsageError: the layout does not fit the shape.
    """
    info = ckpt.infos[key]
    fixed = absent.grid(ckpt, info)
    if fixed:
        raise InputError(f"{printable(key)} is no codebook: {fixed}.")
    if not info.is_floating or len(info.shape) < 2:
        raise InputError(f"{printable(key)} is {tuple(info.shape)} {info.reads}, not a table of code vectors.")
    if not layout and re.search(r"[./]vars[./]\d+$", key):
        raise InputError(
            f"{printable(key)} {tuple(info.shape)} is a variable of Keras, which does not say which axis holds the codes.",
            f"Add --codebook {printable(key)} --layout DK (dimensions first, as in its VQ-VAE example) or KD.",
        )
    counted: tuple[int, int] | None = None
    averages: list[tuple[str, str]] = []
    for part in sections(ckpt):
        for name in part:
            if part.key(name) == key:
                counted = code_axis(part, name)
                averages = [(part.key(sums), part.key(counts)) for sums, counts in twins(part, name)]
    where = Layout.parse(layout) if layout else _guess(info, counted)
    sizes = where.split(info)
    rows = sizes["K"]
    if layout and counted and counted[1] not in (rows, rows - 1, rows * sizes["H"], rows * sizes["L"]):
        raise UsageError(
            f"--layout {layout} reads {printable(key)} {tuple(info.shape)} as {rows} codes; the counts beside it are those of"
            f" {counted[1]}.",
            "Leave out --layout, or name the axis of the codes K.",
        )
    if counted and "K" in where.axes and info.shape[where.axes.index("K")] == counted[1] + 1:
        rows = counted[1]  # a padding row that is never chosen
    warnings = () if metric else (NO_METRIC,)
    if "K" in where.axes and "D" in where.axes and not layout and not counted and sizes["K"] < sizes["D"]:
        name = printable(key) or "the array"
        note = f"{name} is read as {sizes['K']} codes of {sizes['D']} dimensions (--layout DK says the other way round)"
        warnings = (*warnings, note)

    if whole_numbers(ckpt, key):
        warnings = (
            *warnings,
            f"{printable(key) or 'the array'} holds whole numbers alone: these look like indices, not like codes",
        )
    sites = _sites(key, where, sizes, rows)
    sites += [replace(site, key=sums, role="sums", counts=counts) for sums, counts in averages for site in tuple(sites)]

    def parts(ckpt: Checkpoint) -> Parts:
        return Parts(tuple(level[:, :rows] for level in _spread(ckpt.get(key), where, sizes)))

    book = Codebook(
        family="bare array" if ckpt.container in ("npy", "npz") else "unknown",
        keys=((key,) * sizes["H"],) * sizes["L"],
        num_codes=(rows,) * sizes["L"],
        dim=sizes["D"],
        heads=sizes["H"],
        metric=metric or "euclidean",
        dtype=info.reads,
        parts=parts,
        evidence="assumed",
        residual=sizes["L"] > 1,
        own_dims_per_head=sizes["H"] == 1 or any("H" in axis for axis in where.axes),
        ema_twins=tuple(sums for sums, _ in averages),
        sites=tuple(sites),
        refusals={"sliced": AROUND, "consumer": AROUND},
        zero_fill=metric == "cosine" or (sizes["L"] > 1 and not any("L" in axis for axis in where.axes)),
        warnings=warnings,
    )
    stack = not layout and len(info.shape) == 3 and 1 not in info.shape and not (counted and counted[0] == 0)
    return replace(book, restack=lambda how: _restacked(ckpt, key, where, metric, how)) if stack else book


def _restacked(ckpt: Checkpoint, key: str, where: Layout, metric: Metric | None, how: Stack) -> list[Codebook]:
    """What the first letter of a three-dimensional table can stand for."""
    order = "".join(where.axes)
    if how != "independent":
        return [table(ckpt, key, layout=order if how == "product" else order.replace("H", "L"), metric=metric)]
    book = table(ckpt, key, layout=order.replace("H", "L"), metric=metric)

    def level(n: int) -> Callable[[Checkpoint], Parts]:
        return lambda opened: Parts((book.parts(opened).tables[n],))

    return [
        replace(
            book,
            keys=(book.keys[n],),
            num_codes=(book.num_codes[n],),
            parts=level(n),
            residual=False,
            sites=tuple(replace(site, level=0) for site in book.sites if site.level == n),
        )
        for n in range(book.levels)
    ]


def whole_numbers(ckpt: Checkpoint, key: str) -> bool:
    """Whether a table holds whole numbers alone, and more than signs."""
    values = ckpt.get(key).double()
    return bool((values == values.round()).all()) and bool((values.abs() > 1).any())


def _guess(info: TensorInfo, counted: tuple[int, int] | None) -> Layout:
    """(K, D), (H, K, D) or (1, K, D) unless a per-code buffer names another code axis."""
    axes = ["1" if n == 1 else "" for n in info.shape]
    codes = counted[0] if counted else len(axes) - 2
    axes[codes] = "K"
    rest = [i for i, letter in enumerate(axes) if not letter]
    if not rest or len(rest) > 3:
        raise InputError(
            f"{printable(info.key)} has shape {info.shape}: which axis holds what is not clear.",
            "Name the axes with --layout, as in HKD.",
        )
    for i, letter in zip(reversed(rest), "DHL", strict=False):
        axes[i] = letter
    return Layout(tuple(axes), {})


def _spread(tensor: torch.Tensor, layout: Layout, sizes: Mapping[str, int]) -> torch.Tensor:
    """The stored tensor as (L, H, K, D)."""
    letters = "".join(axis for axis in layout.axes if axis != "1")
    tensor = tensor.reshape([sizes[letter] for letter in letters])
    for letter in "HL":
        if letter not in letters:
            tensor, letters = tensor.unsqueeze(0).expand(sizes[letter], *tensor.shape), letter + letters
    return tensor.permute([letters.index(letter) for letter in "LHKD"])


def _sites(key: str, layout: Layout, sizes: Mapping[str, int], rows: int) -> list[Site]:
    axis = next(i for i, letters in enumerate(layout.axes) if "D" in letters)
    flat = layout.axes[axis] == "HD"
    own_heads = not flat and any("H" in letters for letters in layout.axes)
    own_levels = any("L" in letters for letters in layout.axes)
    sites = []
    for level in range(sizes["L"] if own_levels else 1):
        for head in range(sizes["H"] if own_heads else 1):
            window = []
            for i, letters in enumerate(layout.axes):
                step = sizes["K"] if "K" in letters else 1
                number = level if letters[0] == "L" else head
                if letters in ("H", "L", "HK", "LK"):
                    window.append((i, number * step, (number + 1) * step))
                elif letters == "K" and rows < sizes["K"]:
                    window.append((i, 0, rows))
            sites.append(Site(key, axis, "codes", level, head if own_heads else None, tuple(window)))
    return sites


def candidates(parts: list[Section], limit: int = 8) -> list[TensorInfo]:
    """Tensors that could be codebooks by name and shape, likeliest first."""
    tables = [
        part.infos[name] for part in parts for name in part if is_table(part.infos[name]) and not is_statistic(name)
    ]
    named = [info for info in tables if LOOSE.search(info.name)]
    named.sort(key=lambda info: not re.search(r"quant|codebook|vq", info.name, re.IGNORECASE))
    return named[:limit]
