"""Codecs of their own packages (encodec, descript-audio-codec, snac), built from the file alone and filled with its tensors.

Nothing of a pickle runs: tensors and settings come from our own reader, and every setting is held against the shapes in the
file before a model of that size is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.capture import version
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.names import printable

MOST = 1 << 20
"""The largest number that a setting may be."""
MOST_LAYERS = 64


@dataclass(frozen=True)
class Package:
    """One package: how a file of its models is told, and how such a model is made."""

    distribution: str
    kind: str
    """`package.Class`, as the roads of `media` name it."""
    is_own: Callable[[Checkpoint], bool]
    make: Callable[[Any, Checkpoint], torch.nn.Module]
    """(importer, file) -> a model of random numbers."""
    section: str = ""
    """What stands before the names of the model's tensors."""
    config: Callable[[Any], Mapping[str, int]] = lambda model: {}
    """`sampling_rate`, `audio_channels` and `hop_length` of a model."""


def packaged(path: Path) -> Package | None:
    """Which package's model a file or folder is; None where it is of none of them."""
    ckpt = open_checkpoint(path)
    return next((one for one in PACKAGES if one.is_own(ckpt)), None)


def load_packaged(path: Path, package: Package, *, wanted: str) -> tuple[torch.nn.Module, str]:
    """The model in float32, in evaluation mode, and the name and version of its package; `wanted` says what for.

    Raises:
        UsageError: the package is not installed.
        InputError: its settings and tensors do not fit together.
    """
    ckpt = open_checkpoint(path)

    def imported(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            sentence = f"{wanted} runs this model in {package.distribution}, and {error.name or name} is not installed."
            raise UsageError(sentence, f"pip install {package.distribution}") from None

    names = {key.removeprefix(package.section): key for key in ckpt.infos if key.startswith(package.section)}
    try:
        with torch.device("meta"):
            shapes = {name: tuple(t.shape) for name, t in package.make(imported, ckpt).state_dict().items()}
        _refuse_misfit(ckpt, names, shapes, package)
        model = package.make(imported, ckpt)
        model.load_state_dict({name: ckpt.get(key) for name, key in names.items()}, strict=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, IndexError, ArithmeticError) as error:
        raise InputError(f"{package.distribution} does not load {printable(path)}: {printable(error, 300)}.") from error
    model.__dict__["config"] = SimpleNamespace(**package.config(model))  # as the models of transformers have it
    return model.float().eval(), f"{package.distribution} {version(package.kind.partition('.')[0])}".strip()


def _refuse_misfit(
    ckpt: Checkpoint, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], package: Package
) -> None:
    for name in (*shapes, *names):
        mine = ckpt.infos[names[name]].shape if name in names else None
        if mine != shapes.get(name):
            raise InputError(
                f"{package.distribution} does not load {printable(ckpt.path)}: {printable(name)} has shape {mine or 'none'} in the file"
                f" and {shapes.get(name) or 'none'} in the model of its settings."
            )


# descript-audio-codec: settings in metadata.kwargs


def _settings(ckpt: Checkpoint, found: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """Settings that are whole numbers or short lists of them, each of a size that a model can have."""
    for name, value in found.items():
        numbers = value if isinstance(value, list) else [value]
        fits = len(numbers) <= MOST_LAYERS and all(
            number is None or (isinstance(number, int) and 0 <= number <= MOST) for number in numbers
        )
        if not fits or (name == "n_codebooks" and value != levels) or (name == "vq_strides" and len(value) != levels):
            raise InputError(f"{printable(ckpt.path)}: its setting {printable(name)} is {printable(value, 80)}.")
    return dict(found)


def _levels(ckpt: Checkpoint, section: str) -> int:
    keys = (f"{section}quantizer.quantizers.{{}}.codebook.weight", f"{section}quantizer.vq.layers.{{}}._codebook.embed")
    return max(sum(key.format(level) in ckpt.infos for level in range(MOST_LAYERS)) for key in keys)


DAC_SETTINGS = ("metadata", "kwargs")
DAC_SECTION = "state_dict/"


def _is_dac(ckpt: Checkpoint) -> bool:
    told = any(path[:2] == DAC_SETTINGS for path in ckpt.values)
    return told and f"{DAC_SECTION}quantizer.quantizers.0.codebook.weight" in ckpt.infos


def _dac(imported: Any, ckpt: Checkpoint) -> torch.nn.Module:
    kwargs = {path[2]: value for path, value in ckpt.values.items() if path[:2] == DAC_SETTINGS and len(path) == 3}
    model: torch.nn.Module = imported("dac.model.dac").DAC(**_settings(ckpt, kwargs, _levels(ckpt, DAC_SECTION)))
    return model


# snac: settings in config.json


def _is_snac(ckpt: Checkpoint) -> bool:
    return "vq_strides" in (ckpt.config or {}) and "quantizer.quantizers.0.codebook.weight" in ckpt.infos


def _snac(imported: Any, ckpt: Checkpoint) -> torch.nn.Module:
    model: torch.nn.Module = imported("snac").SNAC(**_settings(ckpt, ckpt.config or {}, _levels(ckpt, "")))
    return model


# encodec: settings by the shapes


def _is_encodec(ckpt: Checkpoint) -> bool:
    return {"quantizer.vq.layers.0._codebook.embed", "encoder.model.0.conv.conv.bias"} <= set(ckpt.infos)


def _encodec(imported: Any, ckpt: Checkpoint) -> torch.nn.Module:
    """As the package makes its two models: causal, weight norm, 24 kHz; or group norm, segments of a second, 48 kHz."""
    layers, model, quantization = (imported(f"encodec.{name}") for name in ("modules.seanet", "model", "quantization"))
    normed = "encoder.model.0.conv.conv.weight_v" in ckpt.infos
    weight = ckpt.require(f"encoder.model.0.conv.conv.{'weight_v' if normed else 'weight'}").shape
    codes, dimension = ckpt.require("quantizer.vq.layers.0._codebook.embed").shape
    rate = 24_000 if normed else 48_000
    sizes: dict[str, Any] = {
        "channels": weight[1],
        "dimension": dimension,
        "n_filters": weight[0],
        "ratios": _ratios(ckpt, "weight_v" if normed else "weight"),
        "lstm": sum(f"encoder.model.{at}.lstm.weight_ih_l{n}" in ckpt.infos for at in range(64) for n in range(8)),
        "causal": normed,
        "norm": "weight_norm" if normed else "time_group_norm",
    }
    made: torch.nn.Module = model.EncodecModel(
        layers.SEANetEncoder(**sizes),
        layers.SEANetDecoder(**sizes),
        quantization.ResidualVectorQuantizer(dimension=dimension, n_q=_levels(ckpt, ""), bins=codes),
        [24.0], rate, weight[1], normalize=not normed, segment=None if normed else 1.0,
    )  # fmt: skip
    return made


def _ratios(ckpt: Checkpoint, weight: str) -> list[int]:
    """Upsampling ratios, from the kernels of the transposed convolutions (twice their stride)."""
    keys = [f"decoder.model.{at}.convtr.convtr.{weight}" for at in range(256)]
    kernels: Sequence[int] = [ckpt.infos[key].shape[-1] for key in keys if key in ckpt.infos]
    return [max(1, kernel // 2) for kernel in kernels]


PACKAGES = (
    Package("descript-audio-codec", "dac.DAC", _is_dac, _dac, DAC_SECTION, lambda model: {
        "sampling_rate": model.sample_rate, "audio_channels": 1, "hop_length": int(model.hop_length),
    }),
    Package("snac", "snac.SNAC", _is_snac, _snac, "", lambda model: {
        "sampling_rate": model.sampling_rate, "audio_channels": 1, "hop_length": int(model.hop_length),
    }),
    Package("encodec", "encodec.EncodecModel", _is_encodec, _encodec, "", lambda model: {
        "sampling_rate": model.sample_rate, "audio_channels": model.channels, "hop_length": int(model.encoder.hop_length),
    }),
)  # fmt: skip
