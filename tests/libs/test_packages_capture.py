"""`toc capture` on the codecs of their own packages and on arrays: features and tokens are the package's own.

descript-audio-codec imports audiotools, and encodec torchaudio, for files of sound alone; a module of that name stands in
where they are not installed.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import library_models as library
from cli import toc
from toc_cli.errors import InputError, UsageError
from toc_cli.libraries.media import MediaCodec
from toc_cli.libraries.packages import load_packaged, packaged
from toc_cli.pipeline.capture import CaptureOptions, capture_media

RATE = 2000


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the packages import at their top and never use here."""
    before = set(sys.modules)
    audiotools: Any = types.ModuleType("audiotools")
    audiotools.AudioSignal = audiotools.STFTParams = object
    audiotools.ml = types.ModuleType("audiotools.ml")
    audiotools.ml.BaseModel = type("BaseModel", (torch.nn.Module,), {"INTERN": [], "EXTERN": []})
    audiotools.ml.Accelerator = object
    audiotools.core = types.ModuleType("audiotools.core")
    audiotools.core.util = types.ModuleType("audiotools.core.util")
    argbind: Any = types.ModuleType("argbind")
    argbind.bind = lambda *names, **more: lambda function: function
    stand_ins = {
        "audiotools": audiotools, "audiotools.ml": audiotools.ml, "audiotools.core": audiotools.core,
        "audiotools.core.util": audiotools.core.util, "argbind": argbind, "torchaudio": types.ModuleType("torchaudio"),
    }  # fmt: skip
    absent = {name for name in ("audiotools", "argbind", "torchaudio") if importlib.util.find_spec(name) is None}
    for name, module in stand_ins.items():
        if name.partition(".")[0] in absent:
            monkeypatch.setitem(sys.modules, name, module)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("dac", "encodec"):
            del sys.modules[name]


def dac(folder: Path) -> tuple[torch.nn.Module, Path]:
    made = pytest.importorskip("dac.model.dac", reason="descript-audio-codec is not installed")
    kwargs = {"encoder_dim": 8, "encoder_rates": [2, 4], "decoder_dim": 32, "decoder_rates": [4, 2], "n_codebooks": 3,
              "codebook_size": 32, "codebook_dim": 4, "sample_rate": RATE}  # fmt: skip
    torch.manual_seed(0)
    model = made.DAC(**kwargs)
    torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": kwargs}}, folder / "weights.pth")
    return model.eval(), folder / "weights.pth"


def snac(folder: Path) -> tuple[torch.nn.Module, Path]:
    import json

    made = pytest.importorskip("snac", reason="snac is not installed")
    config = {"sampling_rate": RATE, "encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2],
              "attn_window_size": None, "codebook_size": 16, "codebook_dim": 4, "vq_strides": [4, 2, 1]}  # fmt: skip
    torch.manual_seed(0)
    model = made.SNAC(**config)
    (folder / "snac").mkdir()
    torch.save(model.state_dict(), folder / "snac" / "pytorch_model.bin")
    (folder / "snac" / "config.json").write_text(json.dumps(config))
    return model.eval(), folder / "snac"


def encodec(folder: Path) -> tuple[torch.nn.Module, Path]:
    seanet, made, quantization = (
        pytest.importorskip(f"encodec.{name}", reason="encodec is not installed")
        for name in ("modules.seanet", "model", "quantization")
    )
    torch.manual_seed(0)
    sizes = {"dimension": 12, "n_filters": 4, "ratios": [4, 2], "causal": True, "norm": "weight_norm", "lstm": 1}
    quantizer = quantization.ResidualVectorQuantizer(dimension=12, n_q=3, bins=32)
    model = made.EncodecModel(
        seanet.SEANetEncoder(**sizes), seanet.SEANetDecoder(**sizes), quantizer, [24.0], 24_000, 1
    )
    for level in model.quantizer.vq.layers:
        level._codebook.embed.copy_(torch.randn(32, 12) * 0.3)
        level._codebook.inited.fill_(1)
    torch.save(model.state_dict(), folder / "encodec.th")
    return model.eval(), folder / "encodec.th"


def theirs(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(L, T) tokens of one sound (1, 1, T) by the package's own call, -1 where a level has none."""
    with torch.inference_mode():
        found = model.encode(model.preprocess(x, None)) if type(model).__name__ == "DAC" else model.encode(x)
    if type(model).__name__ == "DAC":
        return found[1][0]
    if type(model).__name__ == "EncodecModel":
        return found[0][0][0]
    longest = max(codes.shape[-1] for codes in found)
    spread = torch.full((len(found), longest), -1)
    for level, codes in enumerate(found):
        spread[level, :: longest // codes.shape[-1]] = codes[0]
    return spread


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("make", [dac, snac, encodec], ids=lambda make: make.__name__)
def test_tokens_are_those_of_the_package(make: Callable[[Path], tuple[torch.nn.Module, Path]], tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    model, path = make(tmp_path)
    media = tmp_path / "sounds"
    media.mkdir()
    rate = MediaCodec(path).rate
    waves = [np.random.default_rng(at).normal(0, 0.2, 320 + 64 * at).astype(np.float32) for at in range(3)]
    for at, wave in enumerate(waves):
        soundfile.write(media / f"s{at}.wav", wave, rate, subtype="FLOAT")
    done = capture_media(path, media, tmp_path / "f.h5", CaptureOptions())
    assert done.files == 3
    assert done.library.startswith(("descript-audio-codec", "snac", "encodec"))
    with h5py.File(tmp_path / "f.h5") as file:
        starts, tokens = file["features.starts"][:], file["features.tokens"][:]
    for wave, start, stop in zip(waves, starts, starts[1:], strict=False):
        expected = theirs(model, torch.from_numpy(wave)[None, None]).T.numpy()
        assert np.array_equal(tokens[start:stop], expected)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("make", [dac, encodec], ids=lambda make: make.__name__)
def test_the_file_is_proven_by_them_and_its_output_compared(
    make: Callable[[Path], tuple[torch.nn.Module, Path]], tmp_path: Path
) -> None:
    """Sound as arrays, captured first, then the whole job: `toc optimize FILE --features sounds.npy` in one process."""
    from toc_cli.pipeline import Options, Outputs, plan_optimization

    _, path = make(tmp_path)
    sounds = np.random.default_rng(3).normal(0, 0.2, (6, 1, 640)).astype(np.float32)
    np.save(tmp_path / "sounds.npy", sounds)
    capture_media(path, tmp_path / "sounds.npy", tmp_path / "f.h5")
    options = Options(keep="0.5", emit=("masked", "sliced"))
    outputs = Outputs(
        path, options.emit, tmp_path / "o.toc.safetensors", data=str(tmp_path / "sounds.npy"), samples=False
    )
    plan = plan_optimization(path, [str(tmp_path / "f.h5")], options, outputs)
    plan.write()
    (book,) = plan.record["codebooks"]
    assert book["evidence"] == "proven"
    assert set(plan.record["outcome"]["forms"]) == {"masked", "sliced"}


@pytest.mark.usefixtures("packages")
def test_settings_that_do_not_fit_the_file_are_refused(tmp_path: Path) -> None:
    _, path = dac(tmp_path)
    saved = torch.load(path, weights_only=True)
    for name, value in (
        ("encoder_dim", 1 << 30),
        ("n_codebooks", 10**9),
        ("decoder_dim", 64),
        ("encoder_rates", [2] * 100),
    ):
        kwargs = {**saved["metadata"]["kwargs"], name: value}
        torch.save({**saved, "metadata": {"kwargs": kwargs}}, tmp_path / "bad.pth")
        package = packaged(tmp_path / "bad.pth")
        assert package is not None
        with pytest.raises(InputError, match=r"its setting|does not load"):
            load_packaged(tmp_path / "bad.pth", package, wanted="toc capture")


@pytest.mark.usefixtures("packages")
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = encodec(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "encodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "encodec", None)
    with pytest.raises(UsageError, match="runs this model in encodec") as told:
        MediaCodec(path)
    assert told.value.hint == "pip install encodec"


# Arrays


@pytest.mark.parametrize("layout", ["bytes NHWC", "bytes NCHW", "floats"])
def test_pictures_as_arrays_are_those_of_files(layout: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    model = library.save(library.vqmodel(), tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    for at, picture in enumerate(pixels):
        image.fromarray(picture).save(tmp_path / "photos" / f"{at}.png")
    arrays = {
        "bytes NHWC": pixels,
        "bytes NCHW": pixels.transpose(0, 3, 1, 2),
        "floats": ((pixels.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2),
    }
    np.savez(tmp_path / "data.npz", images=arrays[layout], label=np.array([3, 3, 10, 10, 2]))
    for data, out in (("photos", "files.h5"), ("data.npz", "arrays.h5")):
        done = toc("capture", model, tmp_path / data, "-o", tmp_path / out, "-q")
        assert done.code == 0, done.err
    with h5py.File(tmp_path / "files.h5") as files, h5py.File(tmp_path / "arrays.h5") as items:
        np.testing.assert_allclose(files["features"][:], items["features"][:], atol=1e-5)
        assert np.array_equal(files["features.tokens"][:], items["features.tokens"][:])
        assert [name.decode() for name in items["features.files"]] == [f"images[{at}]" for at in range(5)]
        assert list(items["label"].attrs["names"]) == ["2", "3", "10"]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 7, 24, 24), np.float32), "channels"),
        (np.full((4, 3, 24, 24), np.nan, np.float32), "NaN"),
        (np.zeros((4, 24), np.float32), "holds no array of pictures"),
        (np.zeros((0, 3, 24, 24), np.float32), "holds no array of pictures"),
    ],
)
def test_arrays_that_are_no_pictures_are_told(array: np.ndarray, says: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = library.save(library.vqmodel(), tmp_path / "model")
    np.save(tmp_path / "x.npy", array)
    done = toc("capture", model, tmp_path / "x.npy", "-o", tmp_path / "f.h5", "-q")
    assert done.code == 3, done.err
    assert says in " ".join(done.err.split())
    assert not (tmp_path / "f.h5").exists()
