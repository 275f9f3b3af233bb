"""What `--lean` leaves out of an edited copy: tensors that training needed and using the model does not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from toc_cli.io.checkpoint.base import Checkpoint, TensorInfo
from toc_cli.io.families.base import Codebook
from toc_cli.io.families.names import is_optimizer

OPTIMIZER = re.compile(
    r"^(?:optim\w*|lr_schedulers?|schedulers?|scaler|grad_scaler|amp\w*|loops|callbacks)$", re.IGNORECASE
)
"""Sections of a training file around the state of what steps a model."""
LOSSES = re.compile(
    r"(?:^|[./])(?:\w*discriminators?|discs?|\w*_loss|loss(?:es)?|loss_fn|criterion|lpips|perceptual\w*|msd|mpd|msstftd)(?:[./]|$)",
    re.IGNORECASE,
)
"""Modules that judge a model while it is trained."""
AVERAGES = re.compile(r"^(?:model_ema|ema_model|averaged|ema)$|^model_ema\.", re.IGNORECASE)
"""Sections and prefixes of running averages of a model."""


def left_out(ckpt: Checkpoint, books: Sequence[Codebook]) -> dict[str, tuple[str, ...]]:
    """Full keys by what they are: `optimizer`, `losses` (discriminators too) and `averages`. No tensor of a codebook or of a layer
    around one is among them; averages go only where the codebooks that are edited are not in them."""
    kept = {site.key for book in books for site in book.sites} | {
        key for book in books for level in book.keys for key in level
    }
    found: dict[str, list[str]] = {"optimizer": [], "losses": [], "averages": []}
    edited_in_average = any(_averaged(ckpt.infos[key]) for key in kept if key in ckpt.infos)
    for key, info in ckpt.infos.items():
        if key in kept:
            continue
        if is_optimizer(info) or any(OPTIMIZER.match(part) for part in info.section):
            found["optimizer"].append(key)
        elif LOSSES.search(info.name) or any(LOSSES.search(part) for part in info.section):
            found["losses"].append(key)
        elif not edited_in_average and _averaged(info):
            found["averages"].append(key)
    return {kind: tuple(keys) for kind, keys in found.items() if keys}


def _averaged(info: TensorInfo) -> bool:
    return bool(AVERAGES.match(info.name)) or any(AVERAGES.match(part) for part in info.section)
