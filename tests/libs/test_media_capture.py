"""`toc capture` on real codecs with random weights: features and tokens are the library's own, also after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import library_models as library
from cli import toc
from toc_cli.libraries.media import MediaCodec
from toc_cli.media import list_media, read_media
from toc_cli.pipeline import capture as room

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")


def photos(folder: Path, count: int = 7, side: int = 24) -> Path:
    """Real photographs in pieces of two sizes, three formats, two classes."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    for at in range(count):
        picture = (china, flower)[at % 2][40 * at : 40 * at + side, 50 * at : 50 * at + side + 8 * (at % 3 == 2)]
        home = folder / ("china", "flower")[at % 2]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(home / f"piece{at}.{('png', 'jpg', 'webp')[at % 3]}")
    return folder


def sounds(folder: Path, count: int = 5, rate: int = 2000) -> Path:
    """Chirps of several lengths, rates and formats; one of them in stereo."""
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(count):
        seconds = np.arange(rate // 2 + 90 * at) / rate
        wave = 0.4 * np.sin(2 * np.pi * (60 + 40 * at + 80 * seconds) * seconds)
        wave = np.stack([wave, 0.5 * wave], 1) if at == 1 else wave
        soundfile.write(folder / f"s{at}.{('wav', 'flac', 'ogg')[at % 3]}", wave.astype(np.float32), rate)
    return folder


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Path], Path]]] = {
    "encodec": (library.encodec, sounds),
    "dac": (library.dac, sounds),
    "mimi": (library.mimi, sounds),
    "xcodec": (library.xcodec, sounds),
    "wav2vec2": (library.wav2vec2, sounds),
    "vqmodel": (library.vqmodel, photos),
    "paella": (library.paella, photos),
    "chameleon": (library.chameleon, photos),
    "emu3": (library.emu3, photos),
}


@pytest.fixture(scope="module", params=MODELS)
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(model folder, media folder, features) of every class."""
    home = tmp_path_factory.mktemp(request.param)
    make, data = MODELS[request.param]
    torch.manual_seed(0)
    model, media = library.save(make(), home / "model"), data(home / "media")
    done = toc("capture", model, media, "-o", home / "feats.h5", "--json")
    assert done.code == 0, done.err
    return model, media, home / "feats.h5"


def test_each_file_alone_gives_its_rows(captured: tuple[Path, Path, Path]) -> None:
    model, media, features = captured
    codec = MediaCodec(model)
    kind, files = list_media(media)
    with h5py.File(features) as found:
        starts = found["features.starts"][:]
        assert [name.decode() for name in found["features.files"]] == [file.name for file in files]
        assert starts[-1] == len(found["features"]) == len(found["features.tokens"])
        for file, start, stop in zip(files, starts, starts[1:], strict=False):
            alone = codec.observe(torch.from_numpy(read_media(file, kind, codec.shape())[None]))
            together, rows = found["features"][start:stop], alone.rows[0].numpy()
            assert np.linalg.norm(together - rows) <= 0.01 * np.linalg.norm(rows)  # a batch rounds otherwise
        assert dict(found["features"].attrs)["toc.side"] == ("codebook" if kind == "image" else "encoder")


def test_recorded_tokens_are_those_of_the_file(captured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, _, features = captured
    with h5py.File(features) as found:
        recorded = found["features.tokens"][:]
    at = 0
    books = json.loads(toc("inspect", model, "--json").out)["codebooks"]
    books.sort(
        key=lambda book: "semantic" not in book["keys"][0][0]
    )  # the library's order: Mimi's semantic token is the first
    for id, book in enumerate(books):
        if len(books) > 1:
            out = tmp_path / f"{id}.toc.safetensors"
            assert (
                toc(
                    "optimize",
                    model,
                    "--features",
                    features,
                    "--codebook",
                    book["keys"][0][0],
                    "--keep",
                    "1.0",
                    "-o",
                    out,
                    "-q",
                ).code
                == 0
            )
            source = out
        else:
            source = model
        assert toc("quantize", features, "--codebook", source, "-o", tmp_path / f"{id}.h5").code == 0
        with h5py.File(tmp_path / f"{id}.h5") as found:
            ours = found["features"][:].reshape(len(recorded), -1)
        levels = ours.shape[1]
        theirs = recorded.reshape(len(recorded), -1)[:, at : at + levels]
        at += levels
        assert (ours == theirs).all(1).mean() >= 0.999
    assert at == recorded.reshape(len(recorded), -1).shape[1]


def test_labels_are_the_folders(tmp_path: Path) -> None:
    model, media = library.save(library.vqmodel(), tmp_path / "m"), photos(tmp_path / "photos")
    assert toc("capture", model, media, "-o", tmp_path / "f.h5", "-q").code == 0
    with h5py.File(tmp_path / "f.h5") as found:
        names = [str(name) for name in found["label"].attrs["names"]]
        rows = np.diff(found["features.starts"][:])
        folder = [name.decode().split("/")[0] for name in found["features.files"]]
        assert names == ["china", "flower"]
        assert [names[c] for c in found["label"][:]] == list(np.repeat(folder, rows))


def test_an_interrupted_capture_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, media = library.save(library.vqmodel(), tmp_path / "m"), photos(tmp_path / "photos")
    monkeypatch.setattr(room, "PART_FILES", 2)
    whole = room.capture_media(model, media, tmp_path / "whole.h5")
    seen: list[Any] = []
    write = room._write_part

    def stopping(*arguments: Any) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(arguments[0])
        write(*arguments)

    monkeypatch.setattr(room, "_write_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        room.capture_media(model, media, tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
    again: list[Any] = []
    monkeypatch.setattr(room, "_write_part", lambda *a: (again.append(a[0]), write(*a)))
    done = room.capture_media(model, media, tmp_path / "f.h5")
    assert len(again) == 2
    assert not set(again) & set(seen)
    assert (done.files, done.rows) == (whole.files, whole.rows)
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5", "m", "photos", "whole.h5"]


def test_unreadable_files_are_skipped_and_listed(tmp_path: Path) -> None:
    model, media = library.save(library.vqmodel(), tmp_path / "m"), photos(tmp_path / "photos")
    (media / "china" / "blank \N{GREEK SMALL LETTER ALPHA}.png").write_bytes(b"\x89PNG nonsense")
    (media / "china" / "empty.jpg").touch()
    done = toc("capture", model, media, "-o", tmp_path / "f.h5", "--json")
    assert done.code == 0
    assert sorted(name for name, _ in json.loads(done.out)["skipped"]) == ["china/blank α.png", "china/empty.jpg"]
    strict = toc("capture", model, media, "-o", tmp_path / "g.h5", "--strict")
    assert (strict.code, "is no readable picture" in strict.err) == (3, True)
    assert not (tmp_path / "g.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{model}", "{empty}"], 3, "holds no pictures and no sound"),
        (["{model}", "{sounds}"], 3, "a VQModel reads pictures"),
        (["{model}", "{mixed}"], 3, "holds pictures and sound"),
        (["{empty}", "{photos}"], 3, "no config.json"),
        (["{model}", "{photos}", "--batch", "0"], 2, "--batch 0"),
        (["{model}", "{photos}", "--crop", "4000"], 3, "None of 7 files could be read"),
        (["{remote}", "{photos}"], 3, "its own code"),
    ],
)
def test_what_cannot_be_captured(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("model", "photos", "sounds", "mixed", "empty", "remote")}
    library.save(library.vqmodel(), places["model"])
    photos(places["photos"])
    sounds(places["sounds"])
    sounds(photos(places["mixed"]))
    places["empty"].mkdir()
    library.save(library.vqmodel(), places["remote"])
    config = json.loads((places["remote"] / "config.json").read_text())
    config |= {"_class_name": "TheirModel", "auto_map": {"AutoModel": "modeling.TheirModel"}}
    (places["remote"] / "config.json").write_text(json.dumps(config))
    before = sorted(path.name for path in tmp_path.iterdir())
    done = toc("capture", *(word.format(**places) for word in arguments), "-o", tmp_path / "f.h5")
    assert (done.code, says in done.err) == (code, True), done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    """A file of a few kilobytes that claims 100,000 x 100,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_001))
        + chunk(b"IEND", b"")
    )
    model, media = library.save(library.vqmodel(), tmp_path / "m"), photos(tmp_path / "photos", count=2)
    (media / "china" / "bomb.png").write_bytes(bomb)
    done = toc("capture", model, media, "-o", tmp_path / "f.h5", "--strict")
    assert (done.code, "bomb.png" in done.err) == (3, True)
