"""Codecs of pictures and sound in their own libraries: what reaches the quantiser, the tokens it chooses, what comes out.

Legend: B files of one shape, W width, L levels, H heads, n rows of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.config import read_json
from toc_cli.io.names import printable
from toc_cli.libraries.loading import load
from toc_cli.libraries.packages import load_packaged, packaged
from toc_cli.media import MediaFile, Mediakind, Shape, holds_arrays, list_arrays, list_media

Tensor = torch.Tensor


@dataclass(frozen=True)
class Road:
    """How one class of codec is run: by its own methods alone."""

    kind: Mediakind
    encode: Callable[[Any, Tensor], Any]
    """Runs the model on (B, C, …) so that its quantiser is called."""
    quantiser: str = "quantizer"
    """Path of the quantiser."""
    called: str = "encode"
    """The method of the quantiser that the model calls."""
    tokens: Callable[[Any, Any, Tensor], Tensor] = lambda module, found, z: found.transpose(0, 1)
    """(quantiser, what it returned, what it was given (B, W, …)) -> (B, L or H, …)."""
    channel_axis: int = 1
    """Of what the quantiser is given."""
    decode: Callable[[Any, Tensor], Tensor] | None = None
    """The whole codec, input to output; None where the class has no decoder."""
    heads: bool = False
    """Whether the second axis of the tokens are heads."""


def _widest(model: Any) -> float:
    return max(model.config.target_bandwidths)


def _grid(module: Any, found: Any, z: Tensor) -> Tensor:
    """Indices of a grid, wherever the class puts them, as (B, 1, …) in the shape of its input."""
    parts = found if isinstance(found, tuple | list) else (found,)
    flat = [part for group in parts for part in (group if isinstance(group, tuple | list) else (group,))]
    indices = next(
        part for part in flat if isinstance(part, Tensor) and not part.is_floating_point() and part.numel() > 1
    )
    return indices.reshape(len(z), 1, *z.shape[2:])


def _logits(module: Any, found: Any, z: Tensor) -> Tensor:
    """(B, W, T) to the argmax per head (B, H, T): the class chooses by it in evaluation mode, and does not return it."""
    return module.weight_proj(z.transpose(1, 2)).unflatten(-1, (module.num_groups, -1)).argmax(-1).transpose(1, 2)


def _emu3(model: Any, x: Tensor) -> Any:
    return model.encode(x, image_sizes=torch.tensor([x.shape[-2:]] * len(x)))


def _emu3_decoded(model: Any, x: Tensor) -> Tensor:
    return torch.cat([model.decode(tokens[None]) for tokens in _emu3(model, x).image_tokens])


def _strided(module: Any, found: Any, z: Tensor) -> Tensor:
    """SNAC's tokens at the rows where a level begins a stride, -1 between: (B, L, T)."""
    tokens = torch.full((len(z), len(found[1]), z.shape[-1]), -1, device=z.device)
    for level, chosen in enumerate(found[1]):
        stride = module.quantizers[level].stride
        tokens[:, level, : stride * chosen.shape[-1] : stride] = chosen
    return tokens


def _paella(model: Any, x: Tensor) -> Any:
    return model.decode(model.encode(x).latents, force_not_quantize=False).sample


_SOUND = Road("sound", lambda m, x: m.encode(x), decode=lambda m, x: m(x).audio_values)
_PICTURE = Road("image", lambda m, x: m.encode(x), "quantize", "forward", _grid)

ROADS = {
    "EncodecModel": Road(
        "sound",
        lambda m, x: m.encode(x, None, _widest(m)),
        decode=lambda m, x: m(x, bandwidth=_widest(m)).audio_values,
    ),
    "DacModel": Road(
        "sound", lambda m, x: m.encode(x), called="forward", tokens=lambda module, found, z: found[1],
        decode=lambda m, x: m(x).audio_values,
    ),
    "encodec.EncodecModel": Road("sound", lambda m, x: m.encode(x), decode=lambda m, x: m(x)),
    "dac.DAC": Road(
        "sound", lambda m, x: m.encode(m.preprocess(x, None)), called="forward", tokens=lambda module, found, z: found[1],
        decode=lambda m, x: m(x)["audio"],
    ),
    "snac.SNAC": Road(
        "sound", lambda m, x: m.encode(x), called="forward", tokens=_strided, decode=lambda m, x: m(x)[0]
    ),
    "MimiModel": _SOUND,
    "XcodecModel": _SOUND,
    "HiggsAudioV2TokenizerModel": _SOUND,
    "Wav2Vec2ForPreTraining": Road(
        "sound", lambda m, x: m(x[:, 0]), called="forward", tokens=_logits, channel_axis=-1, heads=True
    ),
    "VQModel": Road(
        "image", lambda m, x: m(x), "quantize", "forward", _grid, decode=lambda m, x: m(x).sample
    ),
    "PaellaVQModel": Road("image", _paella, "vquantizer", "forward", _grid, decode=_paella),
    "ChameleonVQVAE": _PICTURE,
    "JanusVQVAE": Road("image", lambda m, x: m.encode(x), "quantize", "forward", _grid, decode=lambda m, x: m(x)[0]),
    "Emu3VQVAE": Road("image", _emu3, "quantize", "forward", _grid, channel_axis=2, decode=_emu3_decoded),
}  # fmt: skip


@dataclass(frozen=True)
class Observed:
    """What a quantiser did with a batch of files of one shape."""

    rows: Tensor
    """(B, n, W) float32: what it was given, past any projection that stands before it in the model."""
    tokens: Tensor
    """(B, n, L) or, with heads, (B, n, 1, H), int64: what it chose."""


def kind_of(path: Path) -> Mediakind | None:
    """Whether the codec of a file or folder reads pictures or sound, by the name of its class; None where that is not known here."""
    package = packaged(path)
    if package is not None:
        return ROADS[package.kind].kind
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    names = config.get("_class_name") or config.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    return ROADS[name].kind if isinstance(name, str) and name in ROADS else None


def media_files(path: Path, data: str | Path, limit: int | None = None) -> tuple[Mediakind, list[MediaFile]]:
    """The pictures or sound of `data` for the codec at `path`: files, or the items of a file of arrays. InputError without any."""
    kind = kind_of(path)
    if kind is not None and holds_arrays(data):
        return kind, list_arrays(data, kind, limit=limit)
    return list_media(data, limit=limit)


def runnable(path: Path) -> bool:
    """Whether a file or folder may hold a codec to run: a Hugging Face folder, or a file of a codec's own package."""
    return (path / "config.json").is_file() or packaged(path) is not None


class MediaCodec:
    """A codec, loaded and ready to run on files: of a Hugging Face folder, or of a file of its own package."""

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        package = packaged(folder)
        if package is None:
            model, self.library = load(folder, wanted="toc capture")
            self.name = type(model).__name__
        else:
            model, self.library = load_packaged(folder, package, wanted="toc capture")
            self.name = package.kind
        road = ROADS.get(self.name)
        if road is None:
            raise UsageError(
                f"toc capture cannot run a {self.name}: it knows {', '.join(ROADS)}.",
                "Record from your own script: with toc_cli.capture(model.quantizer, 'feats.h5'): model(batch)",
            )
        self.road, self.model = road, model.to(device=device)
        if any(t.is_floating_point() and t.dtype != dtype for t in (*model.parameters(), *model.buffers())):
            self.model = model.to(dtype=dtype)
        self.device, self.dtype = torch.device(device), dtype
        self.preprocessor = _preprocessor(folder)

    @property
    def kind(self) -> Mediakind:
        """Whether it reads pictures or sound."""
        return self.road.kind

    @property
    def rate(self) -> int:
        """Samples a second that it reads; 0 for pictures."""
        if self.kind == "image":
            return 0
        return int(getattr(self.model.config, "sampling_rate", 0) or self.preprocessor.get("sampling_rate") or 16000)

    @property
    def hop(self) -> int:
        """Samples a row."""
        config = self.model.config
        if hop := getattr(config, "hop_length", None):
            return int(hop)
        if strides := getattr(config, "conv_stride", None):
            return int(torch.tensor(strides).prod())
        return max(1, round(self.rate / float(getattr(config, "frame_rate", 50) or 50)))

    def shape(self, resize: int | None = None, crop: int | None = None, seconds: float | None = None) -> Shape:
        """How a file is brought to what the codec reads: by its own preprocessor where the folder has one, unless told otherwise."""
        config = self.model.config
        if self.kind == "sound":
            channels = int(getattr(config, "audio_channels", 1) or 1)
            return Shape(channels, rate=self.rate, seconds=seconds, least=8 * self.hop)
        own = self.preprocessor
        channels = int(getattr(config, "in_channels", 3))
        return Shape(
            channels,
            resize=resize if resize is not None or crop is not None else _side(own.get("size")),
            crop=crop if crop is not None or resize is not None else _side(own.get("crop_size")) or self._only_side(),
            factor=self._factor(),
            mean=_per_channel(own.get("image_mean"), channels),
            scale=_per_channel(own.get("image_std"), channels),
        )

    def observe(self, batch: Tensor) -> Observed:
        """Run the encoder on (B, C, …) and record the call of the quantiser. InputError where the model does not take the batch."""
        module = self.model.get_submodule(self.road.quantiser)
        rows, tokens = [], []
        with recording(module, self.road.called) as calls, torch.inference_mode(), self._as_ours("encode", batch):
            self.road.encode(self.model, batch.to(self.device, self.dtype))
            for given, found in calls:
                z = given.movedim(self.road.channel_axis, 1)  # (B, W, ...)
                chosen = self.road.tokens(module, found, z).flatten(2).transpose(1, 2).long().cpu()  # (B, n, L or H)
                rows.append(z.flatten(2).transpose(1, 2).float().cpu())
                tokens.append(chosen[:, :, None] if self.road.heads else chosen)
        if not rows:
            raise InputError(f"{self.name} of {self.library} never called its {self.road.quantiser}.")
        return Observed(torch.cat(rows, 1), torch.cat(tokens, 1))

    def output(self, batch: Tensor) -> Tensor:
        """What the whole codec makes of (B, C, …), float32, cut to the input's size. UsageError where it has no decoder."""
        if self.road.decode is None:
            raise UsageError(
                f"{self.name} of {self.library} has no decoder to compare outputs by.", "Leave out --data."
            )
        with torch.inference_mode(), self._as_ours("decode", batch):
            made = self.road.decode(self.model, batch.to(self.device, self.dtype)).float().cpu()
        made = made.reshape(*batch.shape[:-1], -1) if made.ndim < batch.ndim else made
        return made[tuple(slice(0, size) for size in batch.shape)]

    def _only_side(self) -> int | None:
        """The one side that a class with a fixed grid reads."""
        patches = getattr(self.model.config, "num_patches", None)
        return int(patches) * self._factor() if patches else None

    def _factor(self) -> int:
        config = self.model.config
        blocks = getattr(config, "block_out_channels", None) or getattr(config, "channel_multiplier", None)
        if blocks:
            return 1 << (len(blocks) - 1)
        return 1 << int(getattr(config, "levels", 3))

    @contextmanager
    def _as_ours(self, verb: str, batch: Tensor) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error).lower():
                raise InputError(
                    f"A batch of shape {tuple(batch.shape)} does not fit into memory.", "Lower --batch."
                ) from error
            raise InputError(
                f"{self.library} does not {verb} a batch of shape {tuple(batch.shape)}: {printable(error, 300)}."
            ) from error


@contextmanager
def recording(module: torch.nn.Module, method: str) -> Iterator[list[tuple[Tensor, Any]]]:
    """Every call of a method of `module` while the block runs: its first argument and what it returned."""
    calls: list[tuple[Tensor, Any]] = []
    original = getattr(module, method)

    def recorded(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        returned = original(first, *args, **kwargs)
        calls.append((first.detach(), returned))
        return returned

    setattr(module, method, recorded)
    try:
        yield calls
    finally:
        delattr(module, method)


def _preprocessor(folder: Path) -> dict[str, Any]:
    """The folder's own preprocessor, as far as it is plain numbers."""
    file = folder / "preprocessor_config.json"
    return dict(read_json(file)) if file.is_file() else {}


def _side(size: Any) -> int | None:
    """The side that a preprocessor's `size` or `crop_size` names."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return int(size) if isinstance(size, int | float) and size > 0 else None


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    if isinstance(values, list) and len(values) in (1, channels) and all(isinstance(v, int | float) for v in values):
        return tuple(map(float, values))
    return (0.5,)
