"""The data room: layout, order, masks, and a sentence for every bad input."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.batches import BatchPlan, epoch_order, load_batches
from toc_cli.fcid.data import open_split, split_names


def write(path: Path, split: str = "train", **columns: object) -> Path:
    """A data file with one split; the default clips are 7 of video (3, 2, 2, 4) and audio (3, 5)."""
    rng = np.random.default_rng(0)
    features = {"video": rng.normal(size=(7, 3, 2, 2, 4)), "audio": rng.normal(size=(7, 3, 5)).astype(np.float32)}
    with h5py.File(path, "a") as file:
        group = file.create_group(split)
        for name, values in {**features, **columns}.items():
            if values is not None:
                group[name] = values
    return path


def test_modalities_have_the_shapes_of_their_datasets(tmp_path: Path) -> None:
    split = open_split(
        write(tmp_path / "d.h5", frames=np.zeros((7, 3, 9), np.uint8), counts=np.ones((7, 3, 2), int)), "train"
    )
    assert {name: (s.length, s.spatial, s.width) for name, s in split.specs.items()} == {
        "video": (3, (2, 2), 4),
        "audio": (3, (), 5),
    }
    assert len(split) == 7


def test_scaled_integers_are_features(tmp_path: Path) -> None:
    path = write(tmp_path / "d.h5", audio=np.full((7, 3, 5), 30, np.int8))
    with h5py.File(path, "a") as file:
        file["train/audio"].attrs["scale"] = 20.0
    assert torch.equal(open_split(path, "train").read(np.array([2])).x["audio"], torch.full((1, 3, 5), 1.5))


def test_lengths_and_absent_modalities_become_masks(tmp_path: Path) -> None:
    audio = np.ones((7, 3, 5), np.float32)
    audio[0, 2:] = np.nan  # padding may hold anything
    audio[1] = np.nan
    path = write(
        tmp_path / "d.h5",
        audio=audio,
        audio_length=[2, 3, 3, 3, 3, 3, 0],
        audio_present=[1, 0, 1, 1, 1, 1, 1],
        caption=["a", "b", "a", "c", "c", "c", "c"],
    )
    batch = open_split(path, "train").read(np.array([6, 0, 1, 2]))
    assert batch.mask["audio"].tolist() == [[False] * 3, [True, True, False], [False] * 3, [True] * 3]
    assert batch.present["audio"].tolist() == [False, True, False, True]
    assert batch.x["audio"].sum(dim=(1, 2)).tolist() == [0, 10, 0, 15]
    assert "video" not in batch.mask
    assert "video" not in batch.present
    assert batch.index is not None
    assert batch.index.tolist() == [6, 0, 1, 2]
    assert batch.caption is not None
    assert batch.caption[1] == batch.caption[3] != batch.caption[2]


def test_rows_come_back_in_the_order_asked_for_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    values = np.arange(50, dtype=np.float32).reshape(50, 1, 1)
    with h5py.File(path, "w") as file:
        file.create_dataset("train/audio", data=values, chunks=(4, 1, 1))
    split = open_split(path, "train", cache_clips=8)
    rows = np.random.default_rng(1).permutation(50)
    assert split.block == 4
    assert split.read(rows).x["audio"].flatten().tolist() == rows.tolist()
    assert len(split._blocks) <= 3  # the window and one block more


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 250), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_every_clip_once_in_windows_of_whole_blocks(
    clips: int, block: int, buffer: int, seed: int, epoch: int
) -> None:
    order = epoch_order(clips, block, buffer, seed, epoch)
    assert sorted(order) == list(range(clips))
    window = max(1, -(-buffer // block))
    seen: list[int] = []
    for b in order // block:
        if b not in seen:
            seen.append(int(b))
        # a clip of a block is read while its window is open, never later
        assert seen.index(b) // window == (len(seen) - 1) // window
    assert np.array_equal(order, epoch_order(clips, block, buffer, seed, epoch))


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = [tuple(epoch_order(100, 8, 64, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@settings(deadline=None, max_examples=50)
@given(st.integers(4, 90), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_ranks_share_the_batches_of_one_process(clips: int, batch: int, world: int, drop_last: bool) -> None:
    if batch * world < 2 or (drop_last and clips < batch * world):
        return
    one = BatchPlan(clips, 8, batch * world, 32, 3, drop_last)
    ranks = [BatchPlan(clips, 8, batch, 32, 3, drop_last, rank, world) for rank in range(world)]
    steps = ranks[0].steps_per_epoch
    assert steps <= one.steps_per_epoch <= steps + 1
    shares = [rank.epoch(5) for rank in ranks]
    for step, whole in enumerate(one.epoch(5)[:steps]):
        assert np.concatenate([share[step] for share in shares]).tolist() == whole.tolist()
        assert min(len(share[step]) for share in shares) >= 1
    assert [list(r) for r in ranks[0].epoch(5, 1)] == [list(r) for r in ranks[0].epoch(5)[1:]]


def test_workers_change_nothing(tmp_path: Path) -> None:
    split = open_split(write(tmp_path / "d.h5"), "train")
    rows = BatchPlan(len(split), split.block, 2, 100, 0, False).epoch(0)
    here, there = list(load_batches(split, rows)), list(load_batches(split, rows, workers=2))
    assert [b.index.tolist() for b in here] == [b.index.tolist() for b in there]  # type: ignore[union-attr]
    assert all(torch.equal(a.x["video"], b.x["video"]) for a, b in zip(here, there, strict=True))


def test_a_bad_row_met_by_a_worker_is_the_same_sentence(tmp_path: Path) -> None:
    video = np.zeros((7, 3, 2, 2, 4))
    video[3, 1] = np.inf
    split = open_split(write(tmp_path / "d.h5", video=video), "train")
    with pytest.raises(InputError, match="row 3"):
        list(load_batches(split, [np.array([2, 3])], workers=1))


def test_labels_are_checked_against_their_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "d.h5", label_clip=[0, 1, 2, -1, 0, 3, 1], label_second=np.zeros((7, 3), int))
    split = open_split(path, "train")
    assert split.label_names == ["label_clip", "label_second"]
    assert split.label("label_clip").tolist() == [0, 1, 2, -1, 0, 3, 1]
    with pytest.raises(InputError, match=r"no labels 'label_x'.*label_clip, label_second"):
        split.label("label_x")
    del split
    with h5py.File(path, "a") as file:
        file["train/label_clip"].attrs["classes"] = 3
    with pytest.raises(InputError, match=r"Label 3 at row 5 of train/label_clip of d.h5 is out of range"):
        open_split(path, "train").label("label_clip")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"audio": np.zeros((6, 3, 5))}, "Lengths differ in split 'train' of d.h5: audio has 6 clips, video has 7"),
        ({"caption": np.zeros(9, int)}, "audio has 7 clips, caption has 9"),
        ({"audio": None, "video": np.zeros((7, 3))}, "Split 'train' of d.h5 has no modality"),
        (
            {"audio_length": [1, 2, 3, 4, 0, 0, 0]},
            "train/audio_length of d.h5 is 4 at row 3. It must lie between 0 and 3",
        ),
        ({"audio_present": [1, 1, 1, 1, 1, 1, 2]}, "train/audio_present of d.h5 is 2 at row 6"),
        ({"audio": np.full((7, 3, 5), np.nan)}, "train/audio of d.h5 holds NaN or infinity in row 0"),
    ],
)
def test_bad_columns(tmp_path: Path, columns: dict[str, object], sentence: str) -> None:
    path = write(tmp_path / "d.h5", **columns)
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        open_split(path, "train").read(np.arange(7))


def test_unknown_split_missing_file_and_no_hdf5(tmp_path: Path) -> None:
    path = write(tmp_path / "d.h5")
    assert split_names(path) == ["train"]
    with pytest.raises(InputError, match=r"d.h5 has no split 'val'. It has: train"):
        open_split(path, "val")
    with pytest.raises(InputError, match="There is no file"):
        open_split(tmp_path / "none.h5", "train")
    (tmp_path / "text.h5").write_text("not hdf5")
    with pytest.raises(InputError, match="can't be read as HDF5"):
        open_split(tmp_path / "text.h5", "train")


def test_another_file_is_never_followed(tmp_path: Path) -> None:
    write(tmp_path / "other.h5")
    path = tmp_path / "d.h5"
    with h5py.File(path, "w") as file:
        file["train/text"] = np.zeros((7, 3, 2))
        file["train/audio"] = h5py.ExternalLink("other.h5", "/train/audio")
    with pytest.raises(InputError, match=r"'audio' of d.h5 lies in another file"):
        open_split(path, "train")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["val"] = h5py.ExternalLink("other.h5", "/train")
    with pytest.raises(InputError, match=r"'val' of e.h5 lies in another file"):
        open_split(tmp_path / "e.h5", "train")


def test_batches_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="one clip has no negatives"):
        BatchPlan(10, 8, 1, 32, 0, True)
    with pytest.raises(InputError, match=r"has 10 clips, fewer than one batch of 12. Use --batch-size 5 or less"):
        BatchPlan(10, 8, 6, 32, 0, True, 0, 2)
    assert BatchPlan(9, 8, 4, 32, 0, False).steps_per_epoch == 2  # the ninth clip alone is no batch
    assert BatchPlan(10, 8, 4, 32, 0, False).steps_per_epoch == 3
