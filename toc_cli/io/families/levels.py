"""The first levels of a residual codebook: what the others are in the file, and what their library must be told.

Legend: L levels, N the first ones that stay, K codes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families.base import Codebook, Mode, Parts
from toc_cli.io.families.config import section
from toc_cli.io.families.copies import copy_key
from toc_cli.io.families.names import is_optimizer
from toc_cli.io.families.offered import ASSUMED
from toc_cli.io.names import printable

ALL_LEVELS = "a file of the same shapes keeps every level, and the later ones would quantise what the cut ones left"
TOKENS = "it leaves every token as it was, so no level can go"
DAC_SETTINGS = ("metadata", "kwargs")


@dataclass(frozen=True)
class Levels:
    """A cut to the first levels."""

    count: int
    lean: bool = False
    """Whether the optimizer's state, which numbers its tensors, is left out as well."""

    def edits(self, ckpt: Checkpoint, book: Codebook, mode: Mode, on: Edits) -> Edits:
        """As of `cut.Cut`; `book` is the codebook with all its levels."""
        return without_levels(ckpt, book, self.count, on, lean=self.lean) if mode == "sliced" else on


def first(book: Codebook, count: int) -> Codebook:
    """The codebook as if it had only its first `count` levels."""
    if count >= book.levels:
        return book
    read = book.parts

    def parts(ckpt: Checkpoint) -> Parts:
        return first_parts(read(ckpt), count)

    sites = tuple(site for site in book.sites if site.level is None or site.level < count)
    kept = {site.key for site in sites}
    return replace(
        book,
        keys=book.keys[:count],
        num_codes=book.num_codes[:count],
        parts=parts,
        residual=book.residual and count > 1,
        sites=sites,
        ema_twins=tuple(key for key in book.ema_twins if key in kept),
        relies=tuple(one for one in book.relies if one.level < count and (one.key in kept or one.level == 0)),
        restack=None,
    )


def first_parts(parts: Parts, count: int) -> Parts:
    """The tensors of the first levels."""
    return replace(
        parts, tables=parts.tables[:count], level_in=parts.level_in[:count], level_out=parts.level_out[:count]
    )


def refusal(ckpt: Checkpoint, book: Codebook, count: int, mode: Mode, *, lean: bool = False) -> str:
    """Why a mode cannot be written with the first `count` levels of the whole `book`; "" where it can. `lean`: without the
    optimizer's state."""
    if mode == "codebook" or count >= book.levels:
        return ""
    if mode in ("masked", "consumer"):
        return ALL_LEVELS if mode == "masked" else TOKENS
    if ckpt.read_only:
        return ckpt.read_only.rstrip(".")
    if book.evidence == "assumed" and not book.granted:
        return ASSUMED
    if not ckpt.can_omit:
        return f"nothing can be left out of a {ckpt.container} file"
    if not _modules(book):
        return "its levels have no modules of their own in the file that could be left out"
    if book.exact_levels is not None:
        return "its later levels go through networks of their own, which stand elsewhere in the file"
    if not lean and any(is_optimizer(info) for info in ckpt.infos.values()):
        return "the optimizer state in the file numbers its tensors, and would belong to others (--lean leaves it out)"
    if ckpt.config is not None and (book.family not in IN_CONFIG or not _config(ckpt, book, count)):
        return "nothing says which value of its config is the number of levels"
    return ""


def without_levels(ckpt: Checkpoint, book: Codebook, count: int, on: Edits, *, lean: bool = False) -> Edits:
    """The edits of the sliced form, without the levels of the whole `book` from `count` on. UsageError where it cannot be."""
    if reason := refusal(ckpt, book, count, "sliced", lean=lean):
        raise UsageError(
            f"--emit sliced is not possible for {printable(book.shown)} with --levels: {reason}.", "Leave one out."
        )
    gone = dropped(ckpt, book, count)
    return replace(
        on,
        tensors={key: tensor for key, tensor in on.tensors.items() if key not in gone},
        config={**on.config, **(_config(ckpt, book, count) if ckpt.config is not None else {})},
        values={**on.values, **_values(ckpt, on, count)},
        without=on.without | gone,
    )


def dropped(ckpt: Checkpoint, book: Codebook, count: int) -> frozenset[str]:
    """Full keys of the modules of the levels from `count` on, in every copy of the model."""
    prefixes = tuple(prefix for own in _modules(book)[count:] for prefix in own)
    found = {key for key in ckpt.infos if prefixes and key.startswith(prefixes)}
    for copy in book.copies:
        found |= {other for key in tuple(found) if (other := copy_key(ckpt, book.root, copy, key))}
    return frozenset(found)


def load_hint(book: Codebook, count: int) -> str:
    """What its owner must write to load a file of fewer levels that has no config."""
    return f"{count} levels in place of {book.levels}"


def _modules(book: Codebook) -> list[tuple[str, ...]]:
    """Per level what the keys of its modules begin with, one for each head that has tables of its own; none where they have none."""
    heads = [_numbered([level[head] for level in book.keys]) for head in range(len(book.keys[0]))]
    if not all(heads):
        return []
    return [tuple(dict.fromkeys(own)) for own in zip(*heads, strict=True)]


def _numbered(names: list[str]) -> list[str]:
    """The names up to the one number in which they differ; none where they differ otherwise."""
    split = [re.split(r"(?<=[./])", name) for name in names]
    if len(set(map(len, split))) > 1 or len(set(names)) < len(names) or len(names) < 2:
        return []
    places = [at for at, parts in enumerate(zip(*split, strict=True)) if len(set(parts)) > 1]
    if len(places) != 1 or not all(parts[places[0]][:-1].isdecimal() for parts in split):
        return []
    return ["".join(parts[: places[0] + 1]) for parts in split]


# What a config says


def _counted(name: str) -> Callable[[Mapping[str, Any], Codebook, int], dict[str, Any]]:
    """A config that holds the number of levels of all codebooks together."""

    def edit(config: Mapping[str, Any], book: Codebook, count: int) -> dict[str, Any]:
        held = config.get(name)
        return {name: held - (book.levels - count)} if isinstance(held, int) and held >= book.levels else {}

    return edit


def _bandwidths(config: Mapping[str, Any], book: Codebook, count: int) -> dict[str, Any]:
    """A config that holds bandwidths in kbit/s: those of fewer levels, and the one of `count` levels last."""
    rate, held = frame_rate(config), config.get("target_bandwidths")
    bits = math.ceil(math.log2(book.num_codes[0]))
    if not rate or not isinstance(held, list) or not all(isinstance(one, int | float) for one in held):
        return {}
    each = math.ceil(rate) * bits
    last = count * each / 1000
    while int(1000 * last // each) < count:
        last = math.nextafter(last, math.inf)
    return {"target_bandwidths": [*(one for one in held if one < last), last]}


IN_CONFIG: dict[str, Callable[[Mapping[str, Any], Codebook, int], dict[str, Any]]] = {
    "dac": _counted("n_codebooks"),
    "mimi": _counted("num_quantizers"),
    "encodec": _bandwidths,
    "xcodec": _bandwidths,
    "higgs audio v2": _bandwidths,
}
"""Where the config of a family says how many levels there are: (config, whole codebook, N) -> changed values."""
TYPES = {"higgs audio v2": "higgs_audio_v2_tokenizer"}
"""`model_type`, where it is not the family's name."""


def _config(ckpt: Checkpoint, book: Codebook, count: int) -> dict[tuple[str, ...], Any]:
    found = section(ckpt, (TYPES.get(book.family, book.family),))
    if found is None:
        return {}
    _, path, config = found
    return {(*path, name): value for name, value in IN_CONFIG[book.family](config, book, count).items()}


def _values(ckpt: Checkpoint, on: Edits, count: int) -> dict[tuple[str, ...], Any]:
    """The settings inside an original DAC file: the number of levels, and the widths of those that stay."""
    held = {path[2]: value for path, value in ckpt.values.items() if path[:2] == DAC_SETTINGS and len(path) == 3}
    if "codebook_dim" not in held and "n_codebooks" not in held:
        return {}
    changed: dict[tuple[str, ...], Any] = {(*DAC_SETTINGS, "n_codebooks"): count} if "n_codebooks" in held else {}
    own = (*DAC_SETTINGS, "codebook_dim")
    widths = on.values.get(own, held.get("codebook_dim"))
    if isinstance(widths, list):
        changed[own] = widths[:count]
    return changed


def frame_rate(config: Mapping[str, Any]) -> float | None:
    """Rows a second of a codec of sound, by its config; None where that does not say."""
    if isinstance(found := config.get("frame_rate") or config.get("_frame_rate"), int | float):
        return float(found)
    rate = config.get("sampling_rate") or config.get("sample_rate")
    inner = config.get("acoustic_model_config")
    ratios = next(
        (
            one[name]
            for one in (config, inner)
            if isinstance(one, Mapping)
            for name in ("downsampling_ratios", "upsampling_ratios")
            if isinstance(one.get(name), list) and one[name]
        ),
        None,
    )
    hop = (
        math.prod(ratios) if ratios and all(isinstance(r, int) and r > 0 for r in ratios) else config.get("hop_length")
    )
    return rate / hop if isinstance(rate, int | float) and isinstance(hop, int) and hop > 0 else None
