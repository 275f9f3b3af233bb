"""What comes out of real codecs before and after: `--features FOLDER` and `--data` in one command, figures recomputed by hand."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import library_models as library
from cli import toc
from libs.test_media_capture import photos, sounds
from toc_cli.libraries.media import MediaCodec
from toc_cli.media import list_media, read_media
from toc_cli.report import html
from toc_cli.report.assembly import assemble
from toc_cli.report.metrics import values
from toc_cli.report.reading import Run

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("skimage")


def fitted(make: Callable[[], torch.nn.Module], folder: Path, data: Path, home: Path) -> Path:
    """A model whose first codebook holds features of the data, as after training."""
    torch.manual_seed(0)
    library.save(make(), folder)
    assert toc("capture", folder, data, "-o", home / "first.h5", "-q").code == 0
    with h5py.File(home / "first.h5") as found:
        rows = found["features"][:]
    (home / "first.h5").unlink()
    weights = next(folder.glob("*.safetensors"))
    state = load_file(weights)
    made = np.random.default_rng(0)
    apart = 0.3 * rows.std() * made.normal(size=rows.shape)  # rows of one tone are nearly equal: codes must not be
    drawn = torch.from_numpy((made.permutation(rows) + apart).astype(np.float32))
    for key, tensor in state.items():
        if (
            tensor.ndim == 2
            and tensor.shape[1] == rows.shape[1]
            and key.endswith(("codebook.embed", "embedding.weight"))
        ):
            level = next((int(part) for part in key.split(".") if part.isdecimal()), 0)
            tensor.copy_(drawn[: len(tensor)] * 0.5**level)
    for key in list(state):
        if key.endswith("embed_avg"):
            state[key] = (
                state[key.removesuffix("_avg")] * state[key.removesuffix("embed_avg") + "cluster_size"][:, None]
            )
    save_file(state, weights, metadata={"format": "pt"})
    return folder


CASES: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Path], Path]]] = {
    "vqmodel": (library.vqmodel, photos),
    "encodec": (library.encodec, sounds),
    "dac": (library.dac, sounds),
    "mimi": (library.mimi, sounds),
}


def own_tokens(name: str, folder: Path, x: torch.Tensor) -> np.ndarray:
    """What the library's own public call says of one input: (rows, levels)."""
    if name == "vqmodel":
        from diffusers import VQModel

        model = VQModel.from_pretrained(folder).eval()
        return model.quantize(model.encode(x).latents)[2][2].reshape(-1, 1).numpy()
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    widest = {"bandwidth": max(model.config.target_bandwidths)} if name == "encodec" else {}
    codes = model.encode(x, **widest).audio_codes
    return codes.reshape(-1, codes.shape[-1]).T.numpy()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_whole_road_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model as it came and a folder of files, at the defaults; the tokens beside the features are those of the library."""
    make, data = CASES[name]
    media = data(tmp_path / "files")
    torch.manual_seed(0)
    library.save(make(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    line = "optimize model --features files --keep auto --max-distortion 0.01 --report out.html"
    done = toc(*line.split())
    assert done.code == 0, done.err
    assert re.match(r"(Codebook \d: )?(Ship|Do not ship|Weigh)", done.out)
    assert "not what this codebook was trained on" not in done.out + done.err, "tokens prove how it is read"
    codec = MediaCodec(tmp_path / "model")
    kind, files = list_media(media)
    with h5py.File("model.features.h5") as found:
        starts, recorded = found["features.starts"][:], found["features.tokens"][:]
    for file, start, stop in zip(files, starts, starts[1:], strict=False):
        theirs = own_tokens(name, tmp_path / "model", torch.from_numpy(read_media(file, kind, codec.shape())[None]))
        ours = recorded[start:stop].reshape(len(theirs), -1)
        assert ours.shape == theirs.shape
        assert (ours == theirs).mean() >= 0.99, file.name  # a batch rounds otherwise
    (book, *_) = json.loads((tmp_path / "model.toc.json").read_text())["codebooks"]
    assert book["evidence"] == "proven"
    assert (tmp_path / "out.html").read_text().count("<h1") == 1


@pytest.mark.parametrize("name", CASES)
def test_one_command_from_a_folder_to_a_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = CASES[name]
    media = data(tmp_path / "media files")
    fitted(make, tmp_path / "model", media, tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["optimize", "model", "--features", "media files", "--keep", "auto", "--max-distortion", "0.5"]
    done = toc(*arguments, "--emit", "masked", "--report", "out.html")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "model.toc.json").read_text())
    found = record["outcome"]
    assert found["files"] == len(list_media(media)[1])

    before, after = MediaCodec(tmp_path / "model"), MediaCodec(tmp_path / "model.masked")
    kind, files = list_media(media)
    changes, quality = [], []
    for file in files:
        x = read_media(file, kind, before.shape())
        a, b = (codec.output(torch.from_numpy(x[None]))[0].double().numpy() for codec in (before, after))
        x = x[..., : a.shape[-1]]
        if kind == "image":
            x, a, b = ((part * 0.5 + 0.5).clip(0, 1) for part in (x, a, b))
            quality.append([-10 * math.log10(np.mean((x - made) ** 2)) for made in (a, b)])
        else:
            scaled = [(made * x).sum() / (x.astype(float) ** 2).sum() * x for made in (a, b)]
            quality.append([
                10 * math.log10((s**2).sum() / ((made - s) ** 2).sum()) for s, made in zip(scaled, (a, b), strict=True)
            ])  # fmt: skip
        error = ((a - b) ** 2).sum()
        changes.append(min(120.0, 10 * math.log10((a**2).sum() / error)) if error else 120.0)
    measure = "psnr_db" if kind == "image" else "si_sdr_db"
    assert found["forms"]["masked"]["output_snr_db"]["value"] == pytest.approx(np.mean(changes), abs=0.05)
    assert found["before"][measure]["value"] == pytest.approx(np.mean(quality, 0)[0], abs=0.02)
    assert found["forms"]["masked"][measure]["value"] == pytest.approx(np.mean(quality, 0)[1], abs=0.02)
    change = found["forms"]["masked"][f"{measure}_change"]
    assert change["value"] == pytest.approx(np.diff(np.mean(quality, 0))[0], abs=0.02)

    page = (tmp_path / "out.html").read_text()
    assert "What comes out" in page
    assert page.count("data:image/png;base64," if kind == "image" else "data:audio/flac;base64,") >= 3
    assert re.match(r"(Codebook \d: )?(Ship|Do not ship|Weigh)", done.out)
    checked = toc("report", "model.toc.json", "--check", "masked.output_snr_db>=500")
    assert (checked.code, "masked.output_snr_db" in checked.err + checked.out) == (1, True)
    for how in ("--dry-run", "--force"):
        again = toc(*arguments, "--emit", "masked", "--report", "out.html", how)
        assert (again.code, "taken as it stands" in again.err) == (0, True), again.err


def test_samples_stay_out_where_they_are_not_wanted(tmp_path: Path) -> None:
    media = photos(tmp_path / "secret places")
    model = fitted(library.vqmodel, tmp_path / "model", media, tmp_path)
    assert toc("capture", model, media, "-o", tmp_path / "f.h5", "-q").code == 0
    common = ["optimize", model, "--features", tmp_path / "f.h5", "--emit", "sliced", "--data", media]
    for words, kept in ((["--no-samples"], 0), (["--force"], 7)):
        done = toc(*common, *words, "-q")
        assert done.code == 0, done.err
        text = (tmp_path / "model.toc.json").read_text()
        record = json.loads(text)
        assert len(record["outcome"]["samples"]) == kept
        assert ("piece3" in text) == bool(kept)
        if kept:
            sample = record["outcome"]["samples"][0]
            picture = Image.open(io.BytesIO(base64.b64decode(sample["input"])))
            with Image.open(media / sample["name"]) as original:
                assert picture.size == original.size
        page = html.render(assemble([Run("r.toc.json", record)]))
        assert ("data:image/png" in page.split("What comes out")[1].split("</section>")[0]) == bool(kept)
    assert (
        values(record["codebooks"][0], record)["sliced.psnr_db"]
        == record["outcome"]["forms"]["sliced"]["psnr_db"]["value"]
    )


def test_what_data_cannot_be_compared_is_refused_first(tmp_path: Path) -> None:
    media, noises = photos(tmp_path / "photos"), sounds(tmp_path / "sounds")
    model = library.save(library.vqmodel(), tmp_path / "model")
    blind = library.save(library.chameleon(), tmp_path / "blind")
    bad = tmp_path / "bad.h5"
    with h5py.File(bad, "w") as file:
        file["features"] = np.full((50, 12), np.nan, np.float32)
        file["wide"] = np.full((50, 16), np.nan, np.float32)
    for arguments, code, says in (
        ([model, "--data", media], 2, "none is written"),
        ([model, "--data", noises, "--emit", "masked"], 3, "reads image"),
        ([model, "--data", tmp_path / "nowhere", "--emit", "masked"], 3, "holds no pictures"),
        ([blind, "--data", media, "--emit", "masked"], 2, "no decoder"),
        ([next(model.glob("*.safetensors")), "--data", media, "--emit", "masked"], 2, "none that can be run"),
        ([model, "--dry-run", "--features", media], 2, "must be captured first"),
    ):
        done = toc("optimize", *arguments, "--features", bad, "-o", tmp_path / "x.toc.safetensors")
        assert (done.code, says in done.err) == (code, True), done.err
    assert not list(tmp_path.glob("x.*"))
