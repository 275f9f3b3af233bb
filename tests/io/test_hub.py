"""Hub names against a server on this machine that speaks the hub's endpoints; and no network where none is asked for."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli import make_features, toc
from toc_cli.errors import InputError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.hub import HubName, hub_name

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Models below a folder: `org/name/file`."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.root = root
        self.sent: list[tuple[str, int]] = []
        """Path and bytes of each answer with a body."""


class Requests(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = (
            self.path.partition("?")[0]
            .strip("/")
            .removeprefix("datasets/")
            .replace("api/datasets/", "api/models/")
            .split("/")
        )
        if path[:2] == ["api", "models"]:
            folder = self.server.root / path[2] / path[3]
            if not folder.is_dir():
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [str(file.relative_to(folder)) for file in files]
            if "tree" in path:
                sizes = [file.stat().st_size for file in files]
                body: Any = [
                    {"type": "file", "oid": "1", "size": size, "path": name}
                    for size, name in zip(sizes, names, strict=True)
                ]
            else:
                body = {
                    "id": f"{path[2]}/{path[3]}",
                    "sha": COMMIT,
                    "siblings": [{"rfilename": name} for name in names],
                }
            return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        org, name, _, _, *rest = path
        file = self.server.root / org / name / "/".join(rest)
        if not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data, status, headers = (
            file.read_bytes(),
            200,
            {"ETag": f'"{file.stat().st_size:040x}"', "X-Repo-Commit": COMMIT},
        )
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[int(first) : int(last) + 1 if last else None], 206
        return self.answer(status, data, headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
            self.server.sent.append((self.path, len(data)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def model(hub: Hub, name: str = "org/codec", rows: int = 4000) -> Path:
    folder = hub.root / name
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "quantize.embedding.weight": torch.randn(64, 24, generator=generator),
        "decoder.weight": torch.randn(rows, 64),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "x"}')
    return folder


def deny(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("hf://org/name", HubName("org/name")),
        ("hf:/org/name@v1.0", HubName("org/name", "v1.0")),
        ("hf://org/name@rev/sub/file.pt", HubName("org/name", "rev", "sub/file.pt")),
        ("hf://datasets/org/name@rev/x.h5", HubName("org/name", "rev", "x.h5", "dataset")),
        ("hf:/datasets/org/name", HubName("org/name", kind="dataset")),
        ("model.safetensors", None),
        ("folder/model.safetensors", None),
        ("org/name/file", None),
        ("../name", None),
        ("/org/name", None),
    ],
)
def test_which_names_are_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: HubName | None
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name(text) == expected
    (tmp_path / "org").mkdir()
    if not text.startswith("hf:"):
        assert hub_name(text) is None
    with pytest.raises(InputError, match="no name on the hub"):
        hub_name("hf://one")


def test_inspect_reads_headers_alone(hub: Hub) -> None:
    folder = model(hub)
    done = toc("inspect", "org/codec", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["codebooks"][0]["num_codes"] == [64]
    assert sum(count for _, count in hub.sent) < 120_000 < (folder / "model.safetensors").stat().st_size
    checkpoint = open_checkpoint("hf://org/codec")
    assert checkpoint.config == {"model_type": "x"}
    assert checkpoint.get("quantize.embedding.weight").shape == (64, 24)


def test_optimize_downloads_once_and_then_asks_nobody(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model(hub, rows=10)
    make_features(tmp_path / "x.h5")
    done = toc("optimize", "hf://org/codec", "--features", "x.h5")
    assert done.code == 0, done.err
    assert (tmp_path / "codec.toc.safetensors").is_file()
    deny(monkeypatch)
    assert toc("inspect", "org/codec").code == 0
    assert toc("inspect", "cache/models--org--codec").code == 0
    assert toc("quantize", "x.h5", "--codebook", "hf://org/codec/model.safetensors").code == 0


@pytest.mark.parametrize("argument", ["hf://datasets/org/data/x.h5", "hf://org/data@main/x.h5", "@list.txt"])
def test_features_on_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argument: str) -> None:
    model(hub, rows=10)
    (hub.root / "org" / "data").mkdir()
    make_features(hub.root / "org" / "data" / "x.h5")
    (tmp_path / "list.txt").write_text("hf://datasets/org/data/x.h5\n")
    for named in (argument, f"clips={argument}"):
        done = toc("optimize", "org/codec", "--features", named, "--force")
        assert done.code == 0, done.err
    inputs = json.loads((tmp_path / "codec.toc.json").read_text())["inputs"]
    assert [entry["name"] for entry in inputs if entry["role"] == "features"][:1] in (["x.h5"], ["list.txt"])
    deny(monkeypatch)
    done = toc("quantize", argument, "--codebook", "codec.toc.safetensors", "-o", "a.h5")
    assert done.code == 0, done.err
    if argument.startswith("hf:"):
        done = toc("quantize", argument, "--codebook", "codec.toc.safetensors")
        assert (done.code, (tmp_path / "x.tokens.h5").is_file()) == (0, True), done.err


def test_what_features_on_the_hub_lack(hub: Hub, tmp_path: Path) -> None:
    save_file({"quantize.embedding.weight": torch.randn(64, 24)}, tmp_path / "model.safetensors")
    (hub.root / "org" / "data").mkdir(parents=True)
    for argument, sentence in {
        "hf://org/data": "hf://org/data names no file. Name one",
        "hf://datasets/org/data/none.h5": "hf://datasets/org/data/none.h5 has no such file",
        "org/data/x.h5": "org/data/x.h5 does not exist. If it is on the hub: hf://org/name/FILE",
    }.items():
        done = toc("optimize", "model.safetensors", "--features", argument)
        assert (done.code, sentence in " ".join(done.err.split())) == (3, True), done.err


def test_offline_it_says_how_to_get_the_features(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_file({"quantize.embedding.weight": torch.randn(64, 24)}, tmp_path / "model.safetensors")
    deny(monkeypatch)
    done = toc("optimize", "model.safetensors", "--features", "hf://datasets/org/data/y.h5")
    assert done.code == 3
    assert "hf download org/data --repo-type dataset" in " ".join(done.err.split())


@pytest.mark.parametrize(
    "wrong",
    [
        ("--keep", "0"), ("--keep", "auto"), ("--sweep", "5:1:x"), ("--sweep", "0.5,-1"), ("--codes", "none"),
        ("--criterion", "best"), ("--emit", "all"), ("--device", "abacus"), ("--report", "page.txt"), ("-o", "x.pt"),
        ("-o", "old.toc.safetensors"),
    ],
)  # fmt: skip
def test_wrong_flags_are_said_before_anything_is_downloaded(hub: Hub, tmp_path: Path, wrong: tuple[str, str]) -> None:
    model(hub, rows=10)
    make_features(tmp_path / "x.h5")
    (tmp_path / "old.toc.safetensors").touch()
    done = toc("optimize", "org/codec", "--features", "x.h5", *wrong)
    assert (done.code, hub.sent) == (2, []), done.err


def test_quantize_looks_at_its_flags_before_the_hub(hub: Hub, tmp_path: Path) -> None:
    model(hub, rows=10)
    make_features(tmp_path / "x.h5")
    for wrong in (("--device", "abacus"), ("-o", "x.h5"), ("--max-memory", "much")):
        done = toc("quantize", "x.h5", "--codebook", "org/codec", *wrong)
        assert (done.code, hub.sent) == (2, []), done.err


def test_shards_and_lone_files(hub: Hub, tmp_path: Path) -> None:
    folder = hub.root / "org" / "shards"
    folder.mkdir(parents=True)
    save_file({"quantize.embedding.weight": torch.randn(64, 24)}, folder / "a.safetensors")
    save_file({"decoder.weight": torch.randn(3, 3)}, folder / "b.safetensors")
    weight_map = {"quantize.embedding.weight": "a.safetensors", "decoder.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(open_checkpoint("org/shards").infos) == set(weight_map)
    other = hub.root / "org" / "km"
    other.mkdir()
    np.save(other / "codes.npy", np.ones((8, 4), np.float32))
    assert open_checkpoint("org/km").get("").shape == (8, 4)
    torch.save({"w": torch.ones(2, 2)}, other / "more.pt")
    with pytest.raises(InputError, match=r"holds 2 weights files \(codes.npy, more.pt\)"):
        open_checkpoint("hf://org/km@other")


def test_what_the_hub_does_not_hold(hub: Hub) -> None:
    model(hub)
    for name, sentence in {
        "org/none": "hf://org/none is not on the hub, or needs a token",
        "hf://org/codec/none.pt": "has no such file",
    }.items():
        done = toc("inspect", name)
        assert (done.code, sentence in " ".join(done.err.split())) == (3, True), done.err


def test_offline_it_says_what_is_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch)
    done = toc("inspect", "org/codec")
    assert done.code == 3
    said = " ".join(done.err.split())
    assert "hf://org/codec is not in the local cache, and the hub cannot be asked" in said
    assert "hf download org/codec" in said


def test_local_files_ask_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deny(monkeypatch)
    save_file({"quantize.embedding.weight": torch.randn(64, 24)}, tmp_path / "model.safetensors")
    make_features(tmp_path / "x.h5")
    for command in (["inspect", "model.safetensors"], ["optimize", "model.safetensors", "--features", "x.h5"]):
        assert toc(*command).code == 0
