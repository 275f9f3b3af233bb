"""Every container gives the tensors that its own library gives, from a listing that reads no data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import fixture_entries
from toc_cli.errors import InputError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect


def flat(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors of nested dictionaries by joined key: the obvious walk."""
    found = {}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, value in items:
        name = f"{prefix}{key}"
        found.update({name: value} if isinstance(value, torch.Tensor) else flat(value, f"{name}/"))
    return found


def load_torch(path: Path) -> dict[str, torch.Tensor]:
    return flat(torch.load(path, weights_only=True))


def load_folder(path: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors or load_torch(path / "pytorch_model.bin")


def load_h5(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: torch.from_numpy(np.asarray(item[()]))})
                        if isinstance(item, h5py.Dataset) else None)  # fmt: skip
    return found


def load_npz(path: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


@pytest.mark.parametrize(
    ("name", "container", "load"),
    [
        ("containers/plain_state_dict.pt", "torch", load_torch),
        ("containers/legacy_non_zip.pth", "torch", load_torch),
        ("containers/train_state_nested.pt", "torch", load_torch),
        ("layouts/cmg.pt", "torch", load_torch),
        ("encodec_original/encodec_small.th", "torch", load_torch),
        ("containers/bfloat16.safetensors", "safetensors", load_file),
        ("transformers/dac", "safetensors", load_folder),
        ("transformers/encodec_sharded", "sharded safetensors", load_folder),
        ("transformers/encodec_bin", "torch", load_folder),
        ("containers/codebook.h5", "h5", load_h5),
        ("containers/codebooks.npz", "npz", load_npz),
        ("containers/codebook.npy", "npy", lambda path: {"": torch.from_numpy(np.load(path))}),
    ],
)
def test_tensors_equal_those_of_the_containers_own_library(
    fixtures_dir: Path, name: str, container: str, load: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    checkpoint = open_checkpoint(fixtures_dir / name)
    expected = load(fixtures_dir / name)
    assert checkpoint.container == container
    assert checkpoint.infos.keys() == expected.keys()
    for key, tensor in expected.items():
        info = checkpoint.infos[key]
        assert (info.shape, info.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(checkpoint.get(key), tensor)
        assert info.nbytes == tensor.nbytes


def test_every_file_of_the_manifest_opens_or_says_why_not(fixtures_dir: Path) -> None:
    for entry in fixture_entries(fixtures_dir):
        path = fixtures_dir / entry["path"]
        if entry["expect"] in ("refuse", "damaged", "hostile"):
            with pytest.raises(InputError):
                detect(open_checkpoint(path))
            continue
        checkpoint = open_checkpoint(path)
        assert (checkpoint.read_only is not None) == (entry["expect"] == "ok-inert" or checkpoint.container == "faiss")
        assert {file.resolve() for file in checkpoint.files} <= {(fixtures_dir / f).resolve() for f in entry["files"]}
        for codebook in entry["codebooks"]:
            stored = codebook["key"].split(" ")[0]
            assert any(key.endswith(stored) for key in checkpoint.infos), (entry["path"], stored)


def test_sections_values_and_sharing_of_a_training_file(tmp_path: Path) -> None:
    book = torch.arange(12.0).reshape(4, 3)
    state = {"a": book, "b": book, "c": book[1:], "d": torch.zeros(0)}
    torch.save(
        {"model": state, "epoch": 3, "opt": {0: {"exp_avg": book.clone()}}, "dims": [5, 4], "w": [book]},
        tmp_path / "x.pt",
    )
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert list(checkpoint.infos) == ["model/a", "model/b", "model/c", "model/d", "opt/0/exp_avg", "w/0"]
    infos = checkpoint.infos
    assert infos["model/a"].section == ("model",)
    assert infos["model/a"].name == "a"
    assert infos["model/a"].storage == infos["model/b"].storage == infos["model/c"].storage == infos["w/0"].storage
    assert infos["opt/0/exp_avg"].storage not in (None, infos["model/a"].storage)
    assert checkpoint.values == {("epoch",): 3, ("dims",): [5, 4]}


def test_a_bare_tensor_has_the_empty_key(tmp_path: Path) -> None:
    torch.save(torch.ones(2, 3), tmp_path / "x.pt")
    assert torch.equal(open_checkpoint(tmp_path / "x.pt").get(""), torch.ones(2, 3))


def test_config_is_read_from_beside_the_weights(fixtures_dir: Path) -> None:
    folder = fixtures_dir / "transformers" / "dac"
    by_folder, by_file = open_checkpoint(folder), open_checkpoint(folder / "model.safetensors")
    assert by_folder.config == by_file.config == json.loads((folder / "config.json").read_text())
    assert by_file.files == (folder / "model.safetensors", folder / "config.json")


def test_a_folder_without_a_usual_name_is_read_if_it_has_one_weights_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder without weights"):
        open_checkpoint(tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / "mine.safetensors")
    assert list(open_checkpoint(tmp_path).infos) == ["x"]
    save_file({"y": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"holds 2 weights files .*Name one of them"):
        open_checkpoint(tmp_path)


def test_a_pipeline_folder_names_its_models(tmp_path: Path) -> None:
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="Name one of its models: vqvae"):
        open_checkpoint(tmp_path)


def test_an_artefact_opens_as_a_checkpoint(tmp_path: Path) -> None:
    save_file({"0.codebook": torch.ones(1, 1, 4, 2)}, tmp_path / "x.toc.safetensors", {"toc.schema": "1"})
    checkpoint = open_checkpoint(tmp_path / "x.toc.safetensors")
    assert checkpoint.container == "toc artefact"
    assert checkpoint.values == {("toc.schema",): "1"}
    assert checkpoint.read_only


def test_big_endian_and_fortran_arrays_arrive_native(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    np.save(tmp_path / "x.npy", array)
    assert open_checkpoint(tmp_path / "x.npy").get("").tolist() == [[0, 1, 2], [3, 4, 5]]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = array
    assert open_checkpoint(tmp_path / "x.h5").get("a").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_listing_of_a_zip_file_touches_no_tensor_data(tmp_path: Path) -> None:
    """A file whose tensor bytes are a hole in the disk lists like any other."""
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1 << 22)}, path)
    with open(path, "r+b") as file:  # what a listing would read fails a checksum, if it read it
        file.seek(4096)
        file.write(b"\xff" * 4096)
    assert open_checkpoint(path).infos["x"].shape == (1 << 22,)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "uint16", "bool", "complex64", "int64", "float64", "bfloat16"])
def test_safetensors_dtypes(tmp_path: Path, name: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, name))
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.infos["x"].dtype == tensor.dtype
    assert torch.equal(checkpoint.get("x").view(torch.uint8), tensor.view(torch.uint8))
