"""k-means centres, as scikit-learn names them or inside a dictionary called kmeans."""

from __future__ import annotations

import re

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Site
from toc_cli.io.families.names import sections

CENTRES = r"(?:.*\.)?(?:cluster_centers_?|k_?means\w*\.(?:means|centers|centroids))"
READER = "what reads the centres is code outside this file"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The centres (K, D) of every fitted model in the file."""
    return [
        _codebook(ckpt, part.key(match.group()), part.shape(match.group()))
        for part in sections(ckpt)
        for match in part.matches(r".*")
        if re.fullmatch(CENTRES, part.key(match.group()).replace("/", ".")) and len(part.shape(match.group())) == 2
    ]


def _codebook(ckpt: Checkpoint, key: str, shape: tuple[int, ...]) -> Codebook:
    refusals: dict[Mode, str] = {"consumer": READER}
    return Codebook(
        family="k-means (scikit-learn)" if key.endswith("cluster_centers_") else "k-means",
        keys=((key,),),
        num_codes=(shape[0],),
        dim=shape[1],
        heads=1,
        metric="euclidean",
        dtype=ckpt.infos[key].reads,
        parts=lambda opened: Parts(tables=(opened.get(key)[None],)),
        sites=(Site(key, axis=1, role="codes"),),
        load_hint=lambda size: f"features of the {size} kept dimensions",
        refusals=refusals,
    )
