"""The mistakes of a real person, and the sentence that each gets: what is wrong, and what to type instead."""

from __future__ import annotations

import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli import toc

D, K, N = 8, 16, 320


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a person has it: a model, its features, and what lies about."""
    folder = tmp_path_factory.mktemp("desk")
    drawn = torch.Generator().manual_seed(0)
    codes = torch.randn(K, D, generator=drawn)
    save_file(
        {
            "quantize.embedding.weight": codes, "quantize.embedding.embed_avg": codes.clone(),
            "quantize.embedding.cluster_size": torch.ones(K), "quant_conv.weight": torch.randn(D, 12, 1, 1, generator=drawn),
            "quant_conv.bias": torch.randn(D, generator=drawn), "post_quant_conv.weight": torch.randn(12, D, 1, 1, generator=drawn),
            "post_quant_conv.bias": torch.randn(12, generator=drawn),
        },
        folder / "model.safetensors",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = (codes.numpy()[rng.integers(0, K, N)] + 0.2 * rng.standard_normal((N, D))).astype(np.float32)
    np.save(folder / "feats.npy", x)
    np.save(folder / "wide.npy", np.pad(x, ((0, 0), (0, 1))))
    np.save(folder / "int.npy", rng.integers(0, 9, (N, D)))
    np.save(folder / "empty.npy", x[:0])
    np.save(folder / "five.npy", x[:5])
    np.save(folder / "cube.npy", rng.standard_normal((D, D, D, D)).astype(np.float32))
    holed = x.copy()
    holed[3, 2] = np.nan
    np.save(folder / "nan.npy", holed)
    with h5py.File(folder / "labels.h5", "w") as file:
        file["x"], file["label"] = x, rng.standard_normal(N)
    with h5py.File(folder / "short.h5", "w") as file:
        file["x"], file["label"] = x, rng.integers(0, 3, N - 1)
    torch.save(torch.nn.Linear(3, 3), folder / "module.pt")
    (folder / "feats.csv").write_text("1,2\n3,4\n")
    (folder / "feats.pkl").write_bytes(pickle.dumps(x))
    (folder / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"
    )
    (folder / "docs").mkdir()
    (folder / "docs" / "readme.md").write_text("nothing here")
    home = folder / "mein Ordner ä"
    home.mkdir()
    (home / "mödel 1.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    np.save(home / "x 1.npy", x)
    snapshot = folder / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("blobs", "refs"):
        (folder / "hub" / "models--org--name" / name).mkdir()
    (snapshot / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for stem, features in (("old", "feats.npy"), ("foreign", "five.npy")):
        done = toc(
            "optimize", "model.safetensors", "--features", features, "-o", f"{stem}.toc.safetensors", "-q", cwd=folder
        )
        assert done.code == 0, done.err
    return folder


MODEL = "optimize model.safetensors --features"
MISTAKES = {
    "swapped arguments": (
        "optimize feats.npy --features model.safetensors", 2,
        "is a checkpoint: quantize.embedding.weight in it is a codebook. The checkpoint comes first: "
        "toc optimize model.safetensors --features feats.npy",
    ),
    "a codebook as features": (f"{MODEL} model.safetensors", 2, "toc capture MODEL DATA -o feats.h5"),
    "wrong width": (f"{MODEL} wide.npy", 3, "has 8 or 12 channels: there is wide (320, 9)"),
    "a folder for the checkpoint": ("optimize docs --features feats.npy", 3, "a folder without weights"),
    "a folder for the features": (f"{MODEL} docs", 3, "a folder without features"),
    "no --features": ("optimize model.safetensors", 2, "Missing option '--features'. toc capture MODEL DATA -o feats.h5"),
    "a typo in a key": (f"{MODEL} feats.npy --codebook quantise.embedding.weight", 3, "Close names: quantize.embedding.weight"),
    "labels that are floats": (f"{MODEL} labels.h5", 0, "label (320,) are float64: classes are whole numbers; they are left out"),
    "labels of another length": (f"{MODEL} short.h5", 0, "label (319,)"),
    "NaN": (f"{MODEL} nan.npy", 3, "nan (320, 8) holds NaN in row 3"),
    "a pickled module": ("optimize module.pt --features feats.npy", 3, "torch.save(model.state_dict(), 'weights.pt')"),
    "--keep 5 of 8": (f"{MODEL} feats.npy --keep 5", 0, "5 of 8 dimensions; a share would be --keep 5%"),
    "--keep 50 of 8": (f"{MODEL} feats.npy --keep 50", 2, "asks for more than the codebook's 8 dimensions"),
    "an output that stands": (f"{MODEL} feats.npy -o old.toc.safetensors", 2, "old.toc.safetensors exists. Pass --force"),
    "a snapshot of the hub's cache": (
        "optimize hub/models--org--name/snapshots/abc/model.safetensors --features feats.npy", 0,
        "lies in a Hugging Face cache: the outputs go to the current folder",
    ),
    "a name of the hub": ("optimize org/name --features feats.npy", 3, "hf://org/name is not in the local cache"),
    "a name of the hub as features": (f"{MODEL} org/name", 3, "If it is on the hub: hf://org/name/FILE"),
    "an address": ("optimize https://example.org/m.safetensors --features feats.npy", 2, "Download it, and name the file"),
    "an address of the hub": (
        "optimize https://huggingface.co/org/name/resolve/main/a/m.safetensors --features feats.npy", 2,
        "On the hub that is hf://org/name/a/m.safetensors",
    ),
    "a page of the hub": (
        f"{MODEL} https://huggingface.co/datasets/org/name/blob/v1/f.h5", 2, "hf://datasets/org/name@v1/f.h5"
    ),
    "a path of Windows": (f"{MODEL} 'C:\\data\\feats.npy'", 2, "is a path of Windows"),
    "blanks and unicode": ("optimize 'mein Ordner ä/mödel 1.safetensors' --features 'mein Ordner ä/x 1.npy'", 0, ""),
    "whole numbers as features": (f"{MODEL} int.npy", 3, "int64: integer numbers are no features"),
    "no rows": (f"{MODEL} empty.npy", 3, "empty (0, 8) is empty. Features need at least one row"),
    "five rows": (f"{MODEL} five.npy", 0, "5 features cannot vet 16 codes. Give at least 160"),
    "comma-separated text": (f"{MODEL} feats.csv", 3, "numpy.save('feats.npy', rows)"),
    "a pickle as features": (f"{MODEL} feats.pkl", 3, "can run code when it is opened"),
    "standard input": (f"{MODEL} -", 2, "Standard input cannot be read here"),
    "-o without .toc": (f"{MODEL} feats.npy -o out.safetensors", 2, "does not end in .toc.safetensors. Use -o NAME.toc.safetensors"),
    "a typo in a flag": (f"{MODEL} feats.npy --kep 0.5", 2, "--keep"),
    "a typo in a command": ("optimise model.safetensors", 2, "Did you mean toc optimize?"),
    "a command of others": ("prune model.safetensors", 2, "Did you mean toc optimize?"),
    "an unknown criterion": (f"{MODEL} feats.npy --criterion pcaa", 2, "Did you mean pca?"),
    "a pointer of Git LFS": ("optimize pointer.safetensors --features feats.npy", 3, "git lfs pull"),
    "a baseline of other features": (
        "report old.toc.json --baseline foreign.toc.json --check 'distortion<=baseline*1.1'", 2, "was measured on other features",
    ),
    "95 for 95 %": ("report old.toc.json --check 'token_agreement>=95'", 2, "Write token_agreement >= 95%?"),
    "95 for 95 % of a bound": (f"{MODEL} feats.npy --keep auto --min-agreement 95", 2, "or percent, such as 95%"),
    "an axis that cannot be told": (f"{MODEL} cube.npy", 3, "no figure decides (signal to noise"),
    "an axis that is not there": (f"{MODEL} cube.npy --channel-axis 7", 3, "has axes 0 to 3"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_gets_its_sentence(mistake: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command, code, says = MISTAKES[mistake]
    if "in the local cache" in says:
        pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    arguments = shlex.split(command)
    if arguments[0] == "optimize" and "-o" not in arguments and "hub/" not in command:
        arguments += ["-o", str(tmp_path / "out.toc.safetensors")]
    done = toc(*arguments, cwd=desk)
    try:
        assert done.code == code, done.err
        told = " ".join((done.err + " " + (done.out if code == 0 else "")).split())
        assert says in told
        if code:
            assert 1 <= len(done.err.strip().splitlines()) <= 2, "one or two lines"
            assert not list(tmp_path.iterdir()), "nothing is written"
    finally:
        for left in desk.glob("model.toc.*"):
            left.unlink()


def test_percent_bounds_are_shares(desk: Path, tmp_path: Path) -> None:
    runs = []
    for bound in ("60%", "0.6"):
        out = tmp_path / f"{bound.removesuffix('%')}.toc.safetensors"
        done = toc(
            "optimize", "model.safetensors", "--features", "feats.npy", "--keep", "auto", "--min-agreement", bound, "-o", out, "-q",
            cwd=desk,
        )  # fmt: skip
        assert done.code == 0, done.err
        runs.append(out.read_bytes())
    assert runs[0] == runs[1]


def test_a_reader_that_goes_away(desk: Path) -> None:
    line = f"{shlex.quote(sys.executable)} -m toc_cli inspect model.safetensors | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=desk, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 141)
    assert done.stdout.startswith("model.safetensors")
    assert "rror" not in done.stderr
