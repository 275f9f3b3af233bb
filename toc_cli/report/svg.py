"""The sheet that every picture is drawn on: a matplotlib axes whose SVG takes its colours from the page's CSS variables."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from toc_cli.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 400, 272  # px of the viewBox; text is 12.5 px
SMALL_WIDTH, SMALL_HEIGHT = 250, 196
TEXT = 12.5

# Colours that matplotlib writes and the page replaces: one stand-in per CSS variable.
INK = {
    "ink": "#010101",
    "muted": "#020202",
    "rule": "#030303",
    "before": "#040404",
    "after": "#050505",
    "random": "#060606",
    "variance": "#070707",
    "pca": "#080808",
    "dropped": "#090909",
    "other1": "#0a0a0a",
    "other2": "#0b0b0b",
    "other3": "#0c0c0c",
    "other4": "#0d0d0d",
}


@contextmanager
def picture(
    small: bool = False, square: bool = False, height: int | None = None, left: int = 50, bottom: int = 48
) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; on leaving, the list holds the SVG."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report") from error
    wide = SMALL_WIDTH if small else WIDTH
    tall = wide if square else height or (SMALL_HEIGHT if small else HEIGHT)
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "toc",
        "svg.image_inline": True,
        "text.parse_math": False,
        "font.size": TEXT,
        "text.color": INK["ink"],
        "axes.edgecolor": INK["rule"],
        "axes.labelcolor": INK["muted"],
        "axes.labelsize": TEXT,
        "axes.labelpad": 6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": INK["rule"],
        "grid.linewidth": 0.7,
        "xtick.color": INK["rule"],
        "ytick.color": INK["rule"],
        "xtick.labelcolor": INK["muted"],
        "ytick.labelcolor": INK["muted"],
        "xtick.labelsize": TEXT,
        "ytick.labelsize": TEXT,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
    }
    result: list[str] = []
    with rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the page's font draws them
        figure = Figure(figsize=(wide / 72, tall / 72), facecolor="none")
        canvas = FigureCanvasSVG(figure)
        margin = (2, 2, 2, 2) if square else (left, bottom, 14, 32 if height is None else 8)
        inner = (wide - margin[0] - margin[2], tall - margin[1] - margin[3])
        axes = figure.add_axes((margin[0] / wide, margin[1] / tall, inner[0] / wide, inner[1] / tall), facecolor="none")
        yield axes, result
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        result.append(_inline(buffer.getvalue(), wide, tall))


_VARIABLE = {colour: f"var(--{name})" for name, colour in INK.items()}


def _inline(svg: str, width: int, height: int) -> str:
    """The SVG for use inside a page: no prolog, no unused ids, no fixed size, our colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r"font-family: [^;\"]*; ?"):
        svg = re.sub(part, "", svg, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">', svg, count=1)
    svg = re.sub(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", lambda match: _VARIABLE.get(match[0], match[0]), svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace("xlink:href", "href")
    return re.sub(r">\s+<", "><", svg).strip()
