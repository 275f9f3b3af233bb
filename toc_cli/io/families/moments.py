"""Which optimizer moments belong to which parameter, where a training file lets one be sure.

PyTorch numbers parameters in the order of the model, so the shapes of the moments must embed, in order, into the shapes of the
tensors of the file. A number is certain where the leftmost and the rightmost such embedding put it on the same tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from toc_cli.io.checkpoint.base import Checkpoint, TensorInfo
from toc_cli.io.families.names import PER_CODE, is_optimizer

BUFFERS = {
    *PER_CODE, "embed_avg", "embed_ema", "embed_sum", "ema_weight", "inited", "initted", "running_mean", "running_var",
    "batch_mean", "batch_variance", "codebook_mean", "codebook_variance", "codebook_used", "ema_vocab_hit_SV",
}  # fmt: skip
"""Last names of running statistics, which no optimizer steps though they may have the shape of a parameter."""


@dataclass
class OptimizerMoments:
    """Moments by the key of their parameter, and the parameters where more than one reading is possible."""

    found: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)


def of_parameters(ckpt: Checkpoint, keys: Iterable[str], copies: tuple[str, ...] = ()) -> OptimizerMoments:
    """The moments that have to be cut with the parameters `keys`; `copies` are key prefixes of EMA copies, which no optimizer steps."""
    model = [info for info in ckpt.infos.values() if _is_parameter(info) and not info.key.startswith(copies or ("\0",))]
    moments = OptimizerMoments()
    wanted = {key for key in keys if key in ckpt.infos}
    for states in _optimizers(ckpt).values():
        if all(name.isdecimal() for name in states):
            _numbered({int(name): infos for name, infos in states.items()}, model, wanted, moments)
        else:
            for key in wanted:
                infos = states.get(ckpt.infos[key].name, [])
                moments.found[key] = moments.found.get(key, ()) + tuple(info.key for info in infos)
    return moments


def _is_parameter(info: TensorInfo) -> bool:
    buffer = info.name.rpartition(".")[2] in BUFFERS
    return not is_optimizer(info) and info.is_floating and not buffer


def _optimizers(ckpt: Checkpoint) -> dict[tuple[str, ...], dict[str, list[TensorInfo]]]:
    """Per optimizer, the moments (tensors that are not scalars) of each of its states."""
    found: dict[tuple[str, ...], dict[str, list[TensorInfo]]] = {}
    for info in ckpt.infos.values():
        if is_optimizer(info) and len(info.section) >= 2 and info.section[-2] == "state" and info.shape:
            found.setdefault(info.section[:-1], {}).setdefault(info.section[-1], []).append(info)
    return found


def _numbered(
    states: dict[int, list[TensorInfo]], model: list[TensorInfo], wanted: set[str], moments: OptimizerMoments
) -> None:
    shapes = [states[i][0].shape if i in states else None for i in range(max(states) + 1)]
    left = _embed(shapes, [info.shape for info in model])
    right = _embed(shapes[::-1], [info.shape for info in model][::-1])
    for place, info in enumerate(model):
        if info.key not in wanted:
            continue
        numbers = [i for i, shape in enumerate(shapes) if shape == info.shape]
        if left is not None and right is not None:
            latest = [len(model) - 1 - position for position in right[::-1]]
            numbers = [i for i in numbers if left[i] <= place <= latest[i]]
            if len(numbers) == 1 and left[numbers[0]] == latest[numbers[0]]:
                keys = tuple(moment.key for moment in states[numbers[0]] if moment.shape == info.shape)
                moments.found[info.key] = moments.found.get(info.key, ()) + keys
                continue
        if numbers:
            moments.unsure.append(info.key)


def _embed(shapes: list[tuple[int, ...] | None], into: list[tuple[int, ...]]) -> list[int] | None:
    """Leftmost places of `shapes` as a subsequence of `into`; None matches any shape. None where there is no embedding."""
    places: list[int] = []
    start = 0
    for shape in shapes:
        while start < len(into) and shape is not None and into[start] != shape:
            start += 1
        if start == len(into):
            return None
        places.append(start)
        start += 1
    return places
