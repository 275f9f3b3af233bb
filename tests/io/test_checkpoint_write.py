"""An edited copy changes what the edits name and nothing else."""

from __future__ import annotations

import collections
import json
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from toc_cli.errors import UsageError
from toc_cli.io.atomic import sha256
from toc_cli.io.checkpoint import Edits, open_checkpoint

FILES = [
    "containers/plain_state_dict.pt",
    "containers/legacy_non_zip.pth",
    "containers/train_state_nested.pt",
    "containers/bfloat16.safetensors",
    "containers/codebook.h5",
    "containers/codebook.npy",
    "containers/codebooks.npz",
    "transformers/encodec",
    "transformers/encodec_bin",
    "transformers/encodec_sharded",
    "transformers/musicgen_nested_encodec",
]


@pytest.mark.parametrize("name", FILES)
def test_an_edited_copy_keeps_everything_else(fixtures_dir: Path, tmp_path: Path, name: str) -> None:
    source = open_checkpoint(fixtures_dir / name)
    before = [sha256(path) for path in source.files]
    wide = [key for key, info in source.infos.items() if len(info.shape) > 1 and info.dtype.is_floating_point]
    cut, masked = wide[0], wide[-1]
    edits = Edits({masked: source.get(masked) * 2, cut: source.get(cut)[..., :1]})
    written = source.write(tmp_path / Path(name).name, edits)
    copy = open_checkpoint(tmp_path / Path(name).name)
    assert copy.container == source.container
    assert list(copy.infos) == list(source.infos)
    assert (copy.values, copy.config) == (source.values, source.config)
    for key in source.infos:
        assert copy.get(key).dtype == source.infos[key].dtype
        assert torch.equal(copy.get(key), edits.tensors.get(key, source.get(key))), key
    assert all(path.exists() for path in written)
    assert [sha256(path) for path in source.files] == before


@pytest.mark.parametrize("name", FILES)
def test_equal_edits_give_equal_bytes(fixtures_dir: Path, tmp_path: Path, name: str) -> None:
    source = open_checkpoint(fixtures_dir / name)
    key = next(iter(source.infos))
    for target in ("one", "two"):
        source.write(tmp_path / target, Edits({key: source.get(key)}))
    ones, twos = (sorted(p for p in (tmp_path / t).rglob("*") if p.is_file()) or [tmp_path / t] for t in ("one", "two"))
    assert [sha256(path) for path in ones] == [sha256(path) for path in twos]


@pytest.mark.parametrize("name", ["transformers/encodec/model.safetensors", "containers/bfloat16.safetensors"])
def test_a_safetensors_copy_without_edits_has_the_data_of_the_original(
    fixtures_dir: Path, tmp_path: Path, name: str
) -> None:
    original = (fixtures_dir / name).read_bytes()
    open_checkpoint(fixtures_dir / name).write(tmp_path / "copy.safetensors", Edits())
    copy = (tmp_path / "copy.safetensors").read_bytes()
    start = {data: 8 + int.from_bytes(data[:8], "little") for data in (original, copy)}
    assert copy[start[copy] :] == original[start[original] :]
    assert json.loads(copy[8 : start[copy]]) == json.loads(original[8 : start[original]])


def test_safetensors_slices_stay_aligned_and_readable_by_the_library(tmp_path: Path) -> None:
    tensors = {"half": torch.ones(3, 3).half(), "byte": torch.ones(5, dtype=torch.uint8), "float": torch.ones(7, 3)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    edits = Edits({"half": torch.ones(1, 3).half(), "new": torch.zeros(2, dtype=torch.float64)})
    open_checkpoint(tmp_path / "x.safetensors").write(tmp_path / "y.safetensors", edits)
    assert {k: v.shape for k, v in load_file(tmp_path / "y.safetensors").items()} == {
        "half": (1, 3), "byte": (5,), "float": (7, 3), "new": (2,),
    }  # fmt: skip
    data = (tmp_path / "y.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    sizes = {"F64": 8, "F32": 4, "F16": 2, "U8": 1}
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())


def test_torch_copies_keep_order_types_metadata_and_sharing(tmp_path: Path) -> None:
    book = torch.arange(12.0).reshape(4, 3)
    state = collections.OrderedDict(a=book, b=book, c=torch.nn.Parameter(book.clone()), view=book.reshape(-1))
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    torch.save({"model": state, "n": {"dims": [8, 8]}}, tmp_path / "x.pt")
    source = open_checkpoint(tmp_path / "x.pt")

    source.write(tmp_path / "masked.pt", Edits({"model/a": book * 0}))
    masked = torch.load(tmp_path / "masked.pt", weights_only=True)["model"]
    assert masked["a"].untyped_storage().data_ptr() == masked["view"].untyped_storage().data_ptr()
    assert not masked["b"].any()
    assert torch.equal(masked["c"], book)

    new = book[:, :2]
    edits = Edits({"model/a": new, "model/b": new, "model/c": new}, values={("n", "dims"): [5, 4]})
    source.write(tmp_path / "sliced.pt", edits)
    whole = torch.load(tmp_path / "sliced.pt", weights_only=True)
    sliced = whole["model"]
    assert list(sliced) == ["a", "b", "c", "view"]
    assert sliced._metadata == {"": {"version": 1}}
    assert sliced["a"].data_ptr() == sliced["b"].data_ptr()
    assert isinstance(sliced["c"], torch.nn.Parameter)
    assert sliced["a"].untyped_storage().nbytes() == new.numel() * 4
    assert torch.equal(sliced["view"], book.reshape(-1))
    assert whole["n"] == {"dims": [5, 4]}
    assert torch.equal(source.get("model/a"), book)


def test_torch_additions_and_numbered_sections(tmp_path: Path) -> None:
    torch.save({"state": {0: {"exp_avg": torch.ones(2, 3)}}, "model": {"w": torch.ones(2, 3)}}, tmp_path / "x.pt")
    source = open_checkpoint(tmp_path / "x.pt")
    edits = {
        "state/0/exp_avg": torch.ones(2, 1),
        "state/0/new": torch.zeros(1),
        "model/project_in.weight": torch.ones(2, 2),
    }
    source.write(tmp_path / "y.pt", Edits(edits))
    tree = torch.load(tmp_path / "y.pt", weights_only=True)
    assert tree["state"].keys() == {0}
    assert tree["state"][0].keys() == {"exp_avg", "new"}
    assert list(tree["model"]) == ["w", "project_in.weight"]


def test_torch_values_in_tuples_and_expanded_tensors(tmp_path: Path) -> None:
    row = torch.ones(1, 3).expand(4, 3)
    torch.save({"pair": (torch.ones(2, 3), 1), "dims": (8, 8), "row": row}, tmp_path / "x.pt")
    edits = Edits({"pair/0": torch.zeros(2, 1), "row": row * 2}, values={("dims",): [5, 4], ("pair", "1"): 7})
    open_checkpoint(tmp_path / "x.pt").write(tmp_path / "y.pt", edits)
    tree = torch.load(tmp_path / "y.pt", weights_only=True)
    assert tree["dims"] == (5, 4)
    assert tree["pair"][0].shape == (2, 1)
    assert tree["pair"][1] == 7
    assert torch.equal(tree["row"], row * 2)


def test_a_sliced_file_is_smaller_in_every_container(tmp_path: Path) -> None:
    book = torch.randn(4096, 64)
    torch.save({"book": book}, tmp_path / "x.pt")
    torch.save({"book": book}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file({"book": book}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", book=book.numpy())
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["book"] = book.numpy()
    for path in sorted(tmp_path.iterdir()):
        target = path.with_name(f"cut_{path.name}")
        open_checkpoint(path).write(target, Edits({"book": book[:, ::4]}))
        assert target.stat().st_size < 0.27 * path.stat().st_size, path.name
        assert torch.equal(open_checkpoint(target).get("book"), book[:, ::4])


def test_a_folder_copy_patches_the_config_and_takes_its_companions_along(fixtures_dir: Path, tmp_path: Path) -> None:
    source_folder = fixtures_dir / "transformers" / "musicgen_nested_encodec"
    edits = Edits(config={("audio_encoder", "codebook_dim"): 7, ("new", "nested"): 1})
    written = open_checkpoint(source_folder).write(tmp_path / "out", edits)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = json.loads((source_folder / "config.json").read_text())
    expected["audio_encoder"]["codebook_dim"] = 7
    expected["new"] = {"nested": 1}
    assert config == expected
    companion = "generation_config.json"
    assert (tmp_path / "out" / companion).read_bytes() == (source_folder / companion).read_bytes()
    assert {path.name for path in written} == {path.name for path in source_folder.iterdir()}


def test_a_lone_file_gets_its_patched_config_beside_it(fixtures_dir: Path, tmp_path: Path) -> None:
    source = open_checkpoint(fixtures_dir / "transformers" / "dac" / "model.safetensors")
    written = source.write(tmp_path / "model.sliced.safetensors", Edits(config={("codebook_dim",): 5}))
    assert [path.name for path in written] == ["model.sliced.safetensors", "model.sliced.config.json"]
    assert json.loads(written[1].read_text()) == {**(source.config or {}), "codebook_dim": 5}


def test_a_sharded_copy_moves_the_totals_of_its_index(fixtures_dir: Path, tmp_path: Path) -> None:
    folder = fixtures_dir / "transformers" / "encodec_sharded"
    source = open_checkpoint(folder / "model.safetensors.index.json")
    key = "quantizer.layers.0.codebook.embed"
    cut = source.get(key)[:, :5]
    source.write(tmp_path / "out", Edits({key: cut, "added": torch.ones(3)}))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    old = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {**old["weight_map"], "added": old["weight_map"][key]}
    copy = open_checkpoint(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in copy.infos.values())
    gained = cut.numel() + 3 - source.get(key).numel()
    assert index["metadata"]["total_parameters"] == old["metadata"]["total_parameters"] + gained


def test_hdf5_copies_keep_attributes_filters_and_links(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["model"] = "toy"
        group = file.create_group("g")
        group.attrs["n"] = 3
        group.create_dataset("book", data=np.ones((64, 8), "f4"), chunks=(16, 8), compression="gzip", shuffle=True)
        group["book"].attrs["note"] = "kept"
        group["twin"] = group["book"]
        group["soft"] = h5py.SoftLink("/g/book")
        group["text"] = "hello"
    source = open_checkpoint(tmp_path / "x.h5")
    assert list(source.infos) == ["g/book"]
    source.write(tmp_path / "y.h5", Edits({"g/book": torch.zeros(64, 5)}))
    with h5py.File(tmp_path / "y.h5") as copy:
        book = copy["g/book"]
        assert (copy.attrs["model"], copy["g"].attrs["n"], book.attrs["note"]) == ("toy", 3, "kept")
        assert (book.shape, book.chunks, book.compression, book.shuffle) == ((64, 5), (16, 5), "gzip", True)
        assert copy["g/twin"] == book == copy["g/soft"]
        assert copy["g/text"][()] == b"hello"


def test_a_file_with_foreign_objects_is_not_written(fixtures_dir: Path, tmp_path: Path) -> None:
    source = open_checkpoint(fixtures_dir / "containers" / "namespace_in_ckpt.pt")
    with pytest.raises(UsageError, match=r"argparse\.Namespace.*cannot be written back"):
        source.write(tmp_path / "x.pt", Edits())
    assert not list(tmp_path.iterdir())


def test_masked_copies_of_a_torch_file_are_patched_and_checked_by_torch(tmp_path: Path) -> None:
    """Same shapes: the copy differs in the edited bytes and their checksums alone, and torch's own reader takes it."""
    whole = torch.arange(24.0).reshape(4, 6)
    tree = {"a": whole, "columns": whole[:, 1:3], "half": torch.ones(3, dtype=torch.bfloat16), "n": {"epoch": 3}}
    torch.save(tree, tmp_path / "x.pt")
    source = open_checkpoint(tmp_path / "x.pt")
    source.write(tmp_path / "y.pt", Edits({"columns": torch.full((4, 2), -1.0), "half": torch.zeros(3).bfloat16()}))
    expected = whole.clone()
    expected[:, 1:3] = -1
    for mapped in (False, True):
        copy = torch.load(tmp_path / "y.pt", weights_only=True, mmap=mapped)
        assert torch.equal(copy["a"], expected)
        assert torch.equal(copy["half"], torch.zeros(3).bfloat16())
        assert copy["n"] == {"epoch": 3}
    with zipfile.ZipFile(tmp_path / "y.pt") as archive:
        assert archive.testzip() is None
    before, after = (tmp_path / "x.pt").read_bytes(), (tmp_path / "y.pt").read_bytes()
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 8 * 4 + 3 * 2 + 2 * 2 * 4


def test_a_masked_copy_holds_no_more_than_its_edits(tmp_path: Path) -> None:
    torch.save({"rest": torch.zeros(1 << 26), "book": torch.zeros(64, 16)}, tmp_path / "x.pt")  # 256 MiB
    source = open_checkpoint(tmp_path / "x.pt")
    tracemalloc.start()
    source.write(tmp_path / "y.pt", Edits({"book": torch.ones(64, 16)}))
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert open_checkpoint(tmp_path / "y.pt").get("book").all()


def test_a_name_that_shares_a_tensor_outlives_it(tmp_path: Path) -> None:
    """As `save_model` stores a tied pair, of which the stored one is left out."""
    weight, other = torch.randn(6, 4), torch.randn(3)
    save_file({"average.w": weight, "b": other}, tmp_path / "m.safetensors", {"w": "average.w", "x.w": "average.w"})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert torch.equal(checkpoint.get("w"), weight)
    checkpoint.write(tmp_path / "same.safetensors", Edits())
    assert load_file(tmp_path / "same.safetensors").keys() == {"average.w", "b"}
    checkpoint.write(tmp_path / "lean.safetensors", Edits(without=frozenset({"average.w", "x.w"})))
    lean = load_file(tmp_path / "lean.safetensors")
    assert lean.keys() == {"w", "b"}
    assert torch.equal(lean["w"], weight)
    assert torch.equal(lean["b"], other)
    checkpoint.write(tmp_path / "apart.safetensors", Edits({"w": weight[:, :2].contiguous()}))
    apart = load_file(tmp_path / "apart.safetensors")
    assert torch.equal(apart["average.w"], weight)
    assert torch.equal(apart["w"], weight[:, :2])
    assert open_checkpoint(tmp_path / "apart.safetensors").infos.keys() == {"average.w", "b", "w", "x.w"}
