"""Layouts that differ in names alone, one row each: where the tables are, what else must be there, how they stack, what reads them.

Names read in the public sources of each project. A row claims a file only by keys that its family alone has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Metric, Mode, Site
from toc_cli.io.families.layers import shape
from toc_cli.io.families.names import Section, code_axis, sections
from toc_cli.io.families.tables import reader, stack
from toc_cli.io.names import printable

AROUND = "the layers around the codebook are not in this file, or not known"
READER = "the layer that reads the quantised vector is not in this file, or not known"


@dataclass(frozen=True)
class Row:
    """One family."""

    family: str
    table: str
    """Pattern of a table, with the group `root` and, where tables are numbered, `level` and `head`."""
    beside: tuple[str, ...] = ()
    """Names under the table's own prefix, and under `root` after a slash, of which each must be in the file."""
    product: bool = False
    """Numbered tables are heads; else levels of a residual."""
    transposed: bool = False
    counted: bool = False
    """Tables are (D, K) or (K, D): the counts beside them tell which."""
    metric: Metric = "euclidean"
    unit_vectors: bool = False
    before: Callable[[Section, str], str | None] = lambda part, root: None
    """The layer before the codebook, from the section and the root."""
    after: tuple[tuple[str, int], ...] = ()
    """(layer under `root`, its input axis) of what reads the quantised vector."""
    sliced: str = AROUND
    """Why the codebook cannot be cut out; "" where it can, if the layers around it are in the file."""
    hint: str = ""
    """What its owner must write to load a cut file, with `{size}`."""
    unless: tuple[str, ...] = ()
    """Settings in the file under which codes are looked up in another way; the file is then refused."""


def _layer(name: str) -> Callable[[Section, str], str | None]:
    return lambda part, root: root + name


def _last(stem: str) -> Callable[[Section, str], str | None]:
    """The layer `stem.N` of the highest N that has a weight."""

    def found(part: Section, root: str) -> str | None:
        pattern = rf"(?P<layer>{re.escape(root + stem)}\.\d+)\.weight"
        return next((match["layer"] for match in reversed(part.matches(pattern))), None)

    return found


NORMED = "the encoder may end in a normalisation that the file does not show"
ROWS = (
    Row(
        "MoMask residual VQ",
        r"(?P<root>.*?)quantizer\.layers\.(?P<level>\d+)\.codebook",
        ("code_sum", "code_count"),
        before=_last("encoder.model"),
        after=(("decoder.model.0", 1),),
        sliced="",
        hint="--code_dim {size}",
    ),
    Row(
        "T2M-GPT VQ",
        r"(?P<root>.*?)quantizer\.codebook",
        ("code_sum", "code_count"),
        before=_last("encoder.model"),
        after=(("decoder.model.0", 1),),
        sliced="",
        hint="--code-dim {size}",
    ),
    Row(
        "zalando VQ-VAE",
        r"(?P<root>.*?)_vq_vae\._embedding\.weight",
        before=_layer("_pre_vq_conv"),
        after=(("_decoder._conv_1", 1),),
        sliced="",
        hint="embedding_dim = {size}",
    ),
    Row(
        "MishaLaskin VQ-VAE",
        r"(?P<root>.*?)vector_quantization\.embedding\.weight",
        ("/pre_quantization_conv.weight",),
        before=_layer("pre_quantization_conv"),
        after=(("decoder.inverse_conv_stack.0", 0),),  # a transposed convolution: (in, out, k, k)
        sliced="",
        hint="--embedding_dim {size}",
    ),
    Row(
        "nadavbh12 VQ-VAE",
        r"(?P<root>.*?)emb\d?\.weight",
        ("cluster_size", "embed_avg"),
        transposed=True,
    ),
    Row("nearest embedding with EMA positions", r"(?P<root>.*?)weight", ("ema_positions", "ema_cluster_size")),
    Row(
        "VideoGPT VQ-VAE",
        r"(?P<root>.*?)codebook\.embeddings",
        ("N", "z_avg", "/pre_vq_conv.conv.weight"),
        before=_layer("pre_vq_conv.conv"),
        after=(("post_vq_conv.conv", 1),),
        sliced="",
        hint="--embedding_dim {size}",
    ),
    Row(
        "ESM3 EMA codebook",
        r"(?P<root>.*?)codebook\.embeddings",
        ("N", "z_avg"),
        before=_layer("pre_vq_proj"),
    ),
    Row(
        "RepCodec (AudioDec)",
        r"(?P<root>.*?)quantizer\.codebook\.layers\.(?P<level>\d+)\.embed",
        ("cluster_size", "embed_avg"),
        transposed=True,
        before=_layer("projector.project"),
        after=(("decoder.conv1", 1),),
    ),
    Row(
        "XY-Tokenizer",
        r"(?P<root>.*?quantizer\.)quantizers\.(?P<level>\d+)\.codebook",
        ("cluster_size", "embed_avg", "inited"),
        before=_layer("input_proj"),
        after=(("output_proj", 1),),
        sliced="",
        hint="rvq_dim: {size} in the model's yaml",
    ),
    Row(
        "NeMo residual VQ",
        r"(?P<root>.*?)vector_quantizer\.(?:rvqs\.(?P<head>\d+)\.)?codebooks\.(?P<level>\d+)\.codes",
        ("cluster_size", "codes_avg"),
    ),
    Row(
        "UniTok",
        r"(?P<root>.*?)quantizer\.codebooks\.(?P<level>\d+)\.codebook\.weight",
        product=True,
        metric="cosine",
        unit_vectors=True,
        after=(("post_quant_proj", 1),),
    ),
    Row(
        "ViT-VQGAN",
        r"(?P<root>.*?)quantizer\.embedding\.weight",
        ("/pre_quant.weight", "/post_quant.weight"),
        metric="cosine",
        unit_vectors=True,
        before=_layer("pre_quant"),
        after=(("post_quant", 1),),
        sliced="",
        hint="embed_dim: {size} in the model's yaml",
    ),
    Row(
        "RQ-VAE recommender",
        r"(?P<root>.*?)layers\.(?P<level>\d+)\.embedding\.weight",
        ("/encoder.mlp.0.weight", "/decoder.mlp.0.weight"),
        after=(("decoder.mlp.0", 1),),
        sliced=NORMED,
        unless=("codebook_normalize", "vae_codebook_normalize"),
    ),
    Row(
        "Haiku VQ-VAE",
        r"(?P<root>.*?)vector_quantizer(?:_ema)?(?:_\d+)?\.embeddings",
        ("ema_cluster_size.hidden", "ema_dw.hidden"),
        counted=True,
    ),
    Row(
        "Sonnet VQ-VAE",
        r"(?P<root>.*?)\w*(?:quantizer|vq|codebook)\w*\.embeddings?",
        ("ema_cluster_size", "ema_dw"),
        counted=True,
    ),
    Row("Keras VQ-VAE", r"(?P<root>.*?)embeddings_vqvae(?:\:0)?", transposed=True),
    Row("Keras VQ-VAE", r"(?P<root>(?:.*\.)?vector_quantizer(?:_\d+)?\.vars)\.0", transposed=True),
)  # fmt: skip


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The codebooks of every row whose keys are in the file."""
    found = []
    for part in sections(ckpt):
        for row in ROWS:
            books = _books(part, row)
            if books:
                _refuse_settings(ckpt, row, books[0])
            found += books
    return found


def _refuse_settings(ckpt: Checkpoint, row: Row, book: Codebook) -> None:
    """InputError where the file's own settings say that its codes are looked up in another way."""
    told = next((path for path, value in ckpt.values.items() if path[-1] in row.unless and value is True), None)
    if told:
        raise InputError(
            f"{printable(book.shown)} is a {row.family} with {printable('.'.join(map(str, told)))}: its codes are brought to unit"
            " length before the lookup, which toc does not read level by level.",
            "--codebook KEY takes one table.",
        )


def _books(part: Section, row: Row) -> list[Codebook]:
    stacks: dict[str, dict[tuple[int, int], str]] = {}
    for match in part.matches(row.table):
        own = match.group().rpartition(".")[0] + "." if "." in match.group() else ""
        wanted = [match["root"] + name[1:] if name.startswith("/") else own + name for name in row.beside]
        if all(name in part for name in wanted) and len(part.shape(match.group())) == 2:
            groups = match.groupdict()
            number, head = int(groups.get("level") or 0), int(groups.get("head") or 0)
            place = (0, number) if row.product else (number, head)
            stacks.setdefault(match["root"], {})[place] = match.group()
    return [_codebook(part, row, root, names) for root, names in stacks.items()]


def _codebook(part: Section, row: Row, root: str, names: dict[tuple[int, int], str]) -> Codebook:
    levels, heads = ({place[axis] for place in names} for axis in (0, 1))
    grid = [[names[level, head] for head in sorted(heads) if (level, head) in names] for level in sorted(levels)]
    transposed = _dimensions_first(part, grid[0][0]) if row.counted else row.transposed
    axis = 0 if transposed else 1
    dim = part.sizes(grid[0][0], "D K" if transposed else "K D")[axis]
    width = dim * len(grid[0])
    after = _readers(part, row, root, width)
    before = row.before(part, root)
    before = before if before and shape(part, before)[:1] == (width,) else None
    refusals: dict[Mode, str] = {}
    if row.sliced or not after or before is None:
        refusals["sliced"] = row.sliced or AROUND
    if not after:
        refusals["consumer"] = READER
    return stack(
        part,
        grid,
        family=row.family,
        transposed=transposed,
        metric=row.metric,
        unit_vectors=row.unit_vectors,
        before=before,
        after=after,
        zero_fill=row.metric == "cosine",
        refusals=refusals,
        load_hint=(lambda size: row.hint.format(size=size)) if row.hint else None,
    )


def _dimensions_first(part: Section, name: str) -> bool:
    """Whether a table is (D, K), by the counts beside it. InputError for a square one, or where no axis is theirs."""
    found, size = code_axis(part, name), part.shape(name)
    if found is None or size[0] == size[1]:
        raise InputError(
            f"{printable(part.key(name))} has shape {size}: which axis holds the codes is not told by the counts beside it.",
            "--codebook KEY with --layout DK (dimensions first, as Sonnet and Haiku store it) or KD says it.",
        )
    return found[0] == 1


def _readers(part: Section, row: Row, root: str, width: int) -> list[Site]:
    """The layers after the codebook whose input is as wide as it."""
    found = [
        (root + layer, axis) for layer, axis in row.after if shape(part, root + layer)[axis : axis + 1] == (width,)
    ]
    return [site for layer, axis in found for site in reader(part, layer, width, axis=axis)]
