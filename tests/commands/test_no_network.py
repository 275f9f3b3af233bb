"""Nothing asks the network but a hub name that was typed and no cache holds: commands run where connections are noted and denied."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli import SCRIPT, make_checkpoint, make_features
from fcid.tiny import tiny_data

DENIES = """
import os, socket

def deny(what):
    def call(first, *arguments, **named):
        if getattr(first, "family", None) != socket.AF_UNIX:
            with open(os.environ["NOTED"], "a") as notes:
                notes.write(f"{what} {arguments or first}\\n")
            raise OSError(101, "Network is unreachable")
        return real[what](first, *arguments, **named)
    return call

real = {"connect": socket.socket.connect, "connect_ex": socket.socket.connect_ex, "sendto": socket.socket.sendto}
for name in real:
    setattr(socket.socket, name, deny(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, deny(name))
"""


def plain(here: Path) -> None:
    make_checkpoint(here / "model.safetensors")
    make_features(here / "feats.h5")


def clips(here: Path) -> None:
    tiny_data(here / "data.h5", clips=12)


def codec(here: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("soundfile")
    import library_models
    from libs.test_media_capture import sounds

    torch.manual_seed(0)
    library_models.save(library_models.encodec(), here / "model")
    sounds(here / "sounds", count=2)


TRAIN = "--set model.width=8 --set model.heads=2 --set model.codebook.size=6 --epochs 1 --batch-size 6"
ROADS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "codebook": (
        plain,
        (
            "inspect model.safetensors",
            "optimize model.safetensors --features feats.h5 --emit masked --report page.html",
            "quantize feats.h5 --codebook model.toc.safetensors",
            "decode feats.tokens.h5 --codebook model.toc.safetensors",
            "report model.toc.json --format html:again.html,junit:checks.xml",
            "explain excess_distortion",
        ),
    ),
    "training": (clips, (f"train-fcid data.h5 -o run {TRAIN}", "inspect run/model.safetensors")),
    "codec": (codec, ("optimize model --features sounds --emit masked --verify -q",)),
    "demo": (lambda here: None, ("demo",)),
}


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    if not SCRIPT.exists():
        pytest.skip("the package is not installed: there is no console script beside the interpreter")
    (tmp_path / "deny").mkdir()
    (tmp_path / "deny" / "sitecustomize.py").write_text(DENIES)
    paths = [str(tmp_path / "deny"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "NOTED": str(tmp_path / "noted"),
        "HF_HOME": str(tmp_path / "hub"),
    }

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *line.split()],
            cwd=tmp_path,
            env=own,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )

    return run


@pytest.mark.parametrize("road", ROADS)
def test_no_command_asks_the_network(
    road: str, tmp_path: Path, run: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    make, lines = ROADS[road]
    make(tmp_path)
    for line in lines:
        done = run(line)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "noted").exists(), f"toc {line}: {(tmp_path / 'noted').read_text()}"


def test_a_hub_name_does(tmp_path: Path, run: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """What is denied is what would be asked: the net of this test has no hole."""
    pytest.importorskip("huggingface_hub")
    done = run("inspect no-such-organisation/no-such-model")
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert (tmp_path / "noted").exists()
