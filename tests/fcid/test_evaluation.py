"""`toc evaluate` from end to end, on runs of a few seconds: what each part says is what a direct computation says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cli import toc
from fcid.labelled_clips import COUNTS, labelled_clips, trained
from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.data import open_split
from toc_cli.fcid.evaluation import EvaluateOptions, evaluate
from toc_cli.fcid.evaluation.generation import seconds_of
from toc_cli.fcid.probe_fit import fit_probes
from toc_cli.fcid.probes import Labelled, ProbeConfig, accuracy, predict_clips
from toc_cli.fcid.run_folder import load_model
from toc_cli.report import schema
from toc_cli.report.strips import frames

SMALL = {"probe_seeds": 2, "probe_epochs": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_clips(tmp_path_factory.mktemp("data") / "clips.h5")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data, tmp_path_factory.mktemp("runs") / "run", epochs=30)


@pytest.fixture(scope="module")
def record(run: Path, data: Path) -> dict[str, Any]:
    options = EvaluateOptions(keep=("0.5",), criteria=("toc", "xcov"), transfer=("b_test",), **SMALL)
    return evaluate(run, data, options)


def rows(record: dict[str, Any], part: str, **wanted: object) -> list[dict[str, Any]]:
    return [row for row in record["evaluation"][part] if all(row[key] == value for key, value in wanted.items())]


def test_every_part_is_there_and_the_record_holds(record: dict[str, Any]) -> None:
    schema.validate(record)
    json.dumps(record, allow_nan=False)
    ids = [variant["id"] for variant in record["evaluation"]["variants"]]
    assert ids == [
        "full", *(f"{worst}{name} 0.5 {form}" for name in ("toc", "xcov") for worst in ("", "worst ") for form in
                  ("slice", "subspace")), "random 0.5 slice", "random 0.5 subspace",
    ]  # fmt: skip
    pairs = [(a, b) for a in ("video", "audio", "text") for b in ("video", "audio", "text")]
    found = {(row["from"], row["to"]) for row in rows(record, "classification")}
    assert found == {*pairs, (None, None)}
    # seconds are labelled as audio and video show them, not for text
    assert {(row["from"], row["to"]) for row in rows(record, "localisation")} == {
        (a, b) for a, b in pairs if "text" not in (a, b)
    } | {(None, None)}
    assert {row["task"] for row in rows(record, "transfer", test="b_test")} == {"label_clip", "label_second"}
    assert {(row["from"], row["to"]) for row in rows(record, "retrieval")} == {(a, b) for a, b in pairs if a != b}
    assert {(row["from"], row["to"]) for row in rows(record, "generation")} == {("audio", "video"), ("video", "audio")}
    for part in ("classification", "localisation", "transfer"):
        assert all(list(row["results"]) == ids for row in rows(record, part))
    roles = [(entry["role"], entry["name"]) for entry in record["inputs"]]
    assert roles == [("checkpoint", "model.safetensors"), ("data", "clips.h5")]
    assert {len(r["seeds"]) for row in rows(record, "classification") for r in row["results"].values()} == {2}


def test_means_and_differences(record: dict[str, Any]) -> None:
    """A mean is of the pairs that read the same levels, and says which they are."""
    means = rows(record, "classification", **{"from": None})
    each = {(row["from"], row["to"]): row for row in rows(record, "classification") if row["from"] != row["to"]}
    assert len(means) == len({tuple(row["levels"]) for row in each.values() if row["from"]})
    for row in means:
        of = [each[tuple(pair)] for pair in row["pairs"]]
        assert {tuple(one["levels"]) for one in of} == {tuple(row["levels"])}
        assert row["results"]["full"]["value"] == pytest.approx(
            np.mean([one["results"]["full"]["value"] for one in of])
        )
    mean = means[0]["results"]
    assert mean["toc 0.5 slice"]["delta"] == pytest.approx(mean["toc 0.5 slice"]["value"] - mean["full"]["value"])


def test_codes_carry_the_cause_across_modalities(run: Path, data: Path) -> None:
    options = EvaluateOptions(keep=(), tasks=("label_clip", "label_second"), modalities=("audio", "video"), probe_seeds=1,
                              probe_epochs=300, parts=("classification", "localisation", "retrieval"))  # fmt: skip
    record = evaluate(run, data, options)
    clip, seconds = (rows(record, part, **{"from": None})[0] for part in ("classification", "localisation"))
    chance = rows(record, "classification", **{"from": "audio", "to": "video"})[0]["chance"]
    assert clip["results"]["full"]["ci95"][0] > chance
    assert seconds["results"]["full"]["value"] > 0.6
    assert rows(record, "retrieval", vectors="codes")[0]["results"]["full"]["map"]["ci95"][0] > 0.4  # chance: 1/3


def test_classification_is_the_probe_on_the_models_own_read_out(run: Path, data: Path, record: dict[str, Any]) -> None:
    model, _ = load_model(run)

    def codes(split: str, modality: str) -> Labelled:
        opened = open_split(data, split, model.config.modalities)
        batch = opened.read(np.arange(len(opened)))
        with torch.no_grad():
            x = model.read_out(model.encode(modality, batch.x[modality]))
        return Labelled(x, torch.ones(x.shape[:2], dtype=torch.bool), torch.from_numpy(opened.label("label_clip")))

    row = rows(record, "classification", **{"from": "audio", "to": "video"})[0]
    assert row["probe"]["width"] == 128
    found = []
    for seed in range(2):
        config = ProbeConfig(epochs=8, seed=seed, lr=row["probe"]["lr"], width=row["probe"]["width"])
        [probe] = fit_probes([(codes("a_train", "audio"), codes("val", "audio"))], 3, [config], per_second=False)
        test = codes("a_test", "video")
        found.append(accuracy(predict_clips(probe, test), test.y))
    assert row["levels"] == ["fine", "coarse"]
    assert row["results"]["full"]["seeds"] == pytest.approx(found, abs=1.01 / COUNTS["a_test"])  # one clip of rounding


def test_all_dimensions_do_not_depend_on_what_is_cut_beside_them(run: Path, data: Path, record: dict[str, Any]) -> None:
    alone = evaluate(run, data, EvaluateOptions(keep=(), tasks=("label_clip",), **SMALL))
    for part in ("classification", "retrieval", "generation"):
        for row in rows(alone, part):
            where = {key: row[key] for key in ("from", "to", "vectors", "levels") if key in row}
            found = rows(record, part, **where)[0]["results"]["full"]
            assert {key: found[key] for key in row["results"]["full"]} == row["results"]["full"]


def test_generation_is_the_models_own_decoder(run: Path, data: Path, record: dict[str, Any]) -> None:
    model, _ = load_model(run)
    x = {}
    for name in ("train", "a_test"):
        split = open_split(data, name, model.config.modalities)
        x[name] = split.read(np.arange(len(split))).x
    with torch.no_grad():
        known, own = (model.encode("video", x[name]["video"]) for name in ("train", "a_test"))
        heard = model.encode("audio", x["a_test"]["audio"])
        usual = known.specific.mean(dim=1, keepdim=True).expand_as(own.specific)
        made = {
            "full": model.decode("video", heard.shared, usual),
            "own codes": model.decode("video", own.shared, usual),
            "own codes and specific part": model.decode("video", own.shared, own.specific),
            "another clip": model.decode("video", heard.shared.roll(1, dims=0), usual),
        }
    true = x["a_test"]["video"]
    mean = ((true - x["train"]["video"].mean(dim=(0, 1))) ** 2).sum()
    row = rows(record, "generation", **{"from": "audio", "to": "video"})[0]
    for name, clips in made.items():
        side = row["results"] if name == "full" else row["references"]
        assert side[name]["error"]["value"] == pytest.approx(float(((clips - true) ** 2).sum() / mean), rel=1e-4)
    assert "error" not in row["references"]["real clips"]
    assert row["references"]["real clips"]["label_clip"]["value"] > 0.55
    assert row["results"]["full"]["error"]["value"] < row["references"]["another clip"]["error"]["value"]


def test_wide_maps_are_averaged_over_positions() -> None:
    x = torch.randn(2, 3, 7, 7, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(seconds_of(x), x.mean(dim=(2, 3)), atol=1e-6)
    assert torch.equal(seconds_of(x[:, :, :2, :2]), x[:, :, :2, :2].reshape(2, 3, 256))
    wide = torch.zeros(2, 3, 2048)
    assert torch.equal(seconds_of(wide), wide)


def test_pictures_are_frames_of_the_data(record: dict[str, Any], data: Path) -> None:
    pictures = record["evaluation"]["pictures"]
    assert {(p["from"], p["to"]) for p in pictures} == {("audio", "video"), ("video", "video")}
    with h5py.File(data) as file:
        for picture in pictures:
            assert (frames(picture, "true") == file["a_test/frames"][picture["clip"]]).all()
            for side in ("generated", "pruned"):
                assert set(frames(picture, side)[:, 0, 0].tolist()) <= {0, 50, 120, 190}
    assert any(picture["pruned"] != picture["generated"] for picture in pictures)


def test_pictures_of_the_clips_that_have_frames(run: Path, data: Path, tmp_path: Path) -> None:
    """AV-Digits ships the frames of its first clips alone."""
    few = tmp_path / "few.h5"
    shutil.copy(data, few)
    with h5py.File(few, "a") as file:
        for name in ("a_train", "a_test"):
            first = file[name]["frames"][:3]
            del file[name]["frames"]
            file[name]["frames"] = first
    options = EvaluateOptions(keep=(), tasks=("label_clip",), parts=("generation",), **SMALL)
    pictures = evaluate(run, few, options)["evaluation"]["pictures"]
    assert {picture["clip"] for picture in pictures} == {0, 1, 2}
    assert not any("pruned" in picture for picture in pictures)
    with h5py.File(few) as file:
        seen = {frame.tobytes() for frame in file["a_train/frames"][:].reshape(-1, 3, 3)}
        for picture in pictures:
            assert (frames(picture, "true") == file["a_test/frames"][picture["clip"]]).all()
            assert {frame.tobytes() for frame in frames(picture, "generated")} <= seen


def test_it_repeats_itself(run: Path, data: Path) -> None:
    options = EvaluateOptions(keep=("0.25",), tasks=("label_clip",), parts=("classification", "retrieval"), **SMALL)
    first, second = (evaluate(run, data, options) for _ in range(2))
    assert first.pop("timing") != second.pop("timing")
    assert first == second


@pytest.mark.parametrize("model", [{"readout": "fine"}, {"readout": "coarse"}], ids=str)
def test_read_outs(data: Path, tmp_path: Path, model: dict[str, object]) -> None:
    run = trained(data, tmp_path / "run", epochs=1, **model)
    options = EvaluateOptions(keep=(), parts=("classification", "localisation", "retrieval"), **SMALL)
    record = evaluate(run, data, options)
    schema.validate(record)
    levels = {tuple(row["levels"]) for row in rows(record, "localisation") if row["from"]}
    assert levels == {(model["readout"],)}
    assert rows(record, "retrieval", **{"from": "audio", "to": "video"})[0]["levels"] == [model["readout"]]
    # text has clip codes only: with it, pairs meet at the coarse level
    assert rows(record, "retrieval", **{"from": "audio", "to": "text"})[0]["levels"] == ["coarse"]
    assert rows(record, "classification", **{"from": "audio", "to": "text"})[0]["levels"] == ["coarse"]


def test_published_and_uniform_runs(tmp_path: Path) -> None:
    data = labelled_clips(tmp_path / "clips.h5", frames=False)
    with h5py.File(data, "a") as file:  # uniform alignment pairs every modality's seconds
        for group in file.values():
            text = group["text"][:]
            del group["text"]
            group["text"] = np.concatenate([text, text[:, :1]], axis=1)
    options = EvaluateOptions(keep=("0.5",), criteria=("toc",), tasks=("label_second",), **SMALL)
    for profile, alignment, vectors in (("published", "fine-coarse", "continuous"), ("corrected", "uniform", "codes")):
        run = trained(data, tmp_path / alignment, epochs=1, profile=profile, alignment=alignment)
        record = evaluate(run, data, options)
        schema.validate(record)
        assert record["evaluation"]["pictures"] == []
        assert {row["vectors"] for row in rows(record, "generation")} == {vectors}
        assert {tuple(row["levels"]) for row in rows(record, "localisation") if row["from"]} == {("fine",)}


def test_clips_without_a_modality_count_nowhere(tmp_path: Path) -> None:
    data = labelled_clips(tmp_path / "clips.h5", ragged=True)
    run = trained(data, tmp_path / "run", epochs=1)
    record = evaluate(run, data, EvaluateOptions(keep=("0.5",), criteria=("xcov",), **SMALL))
    schema.validate(record)
    with h5py.File(data) as file:
        there = int(file["a_test/video_present"][:].sum())
    assert {row["clips"] for row in rows(record, "retrieval", **{"from": "video"})} == {there}
    assert {row["clips"] for row in rows(record, "retrieval", **{"from": "text", "to": "audio"})} == {COUNTS["a_test"]}


def test_transfer_to_another_file(run: Path, data: Path, tmp_path: Path) -> None:
    other = labelled_clips(tmp_path / "other.h5", seed=9)
    options = EvaluateOptions(
        keep=(), tasks=("label_clip",), transfer=(str(other),), parts=("transfer",), probe_seeds=1, probe_epochs=300
    )
    record = evaluate(run, data, options)
    assert not rows(record, "classification")
    assert rows(record, "transfer", **{"from": "audio", "to": "video"})[0]["results"]["full"]["value"] > 0.5
    assert ("transfer", "other.h5") in [(entry["role"], entry["name"]) for entry in record["inputs"]]


def test_the_road_from_run_to_report(run: Path, data: Path, tmp_path: Path) -> None:
    """What optimize writes, evaluated, is what evaluate finds with the same criterion; report draws it."""
    artefacts = []
    for level in ("fine", "coarse"):
        features, artefact = tmp_path / f"{level}.h5", tmp_path / f"{level}.toc.safetensors"
        assert toc("evaluate", run, data, "--save-features", features, "--level", level).code == 0
        done = toc("optimize", run / "model.safetensors", "--codebook", f"codebook.{level}.embedding", "--features", features,
                   "--keep", "0.5", "--criterion", "xcov", "-o", artefact, "-q")  # fmt: skip
        assert done.code == 0, done.err
        artefacts += ["--artefact", artefact]
    done = toc("evaluate", run, data, "--keep", "0.5", "--criterion", "xcov", *artefacts, "--seeds", 1, "--probe-epochs", 4,
               "-o", tmp_path / "evaluation.toc.json", "--json")  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert json.loads((tmp_path / "evaluation.toc.json").read_text())["evaluation"] == record["evaluation"]
    for part in ("classification", "localisation", "retrieval", "generation"):
        for row in rows(record, part):
            for form in ("slice", "subspace"):
                ours, theirs = (row["results"].get(f"{id} {form}") for id in ("xcov 0.5", "artefact"))
                assert (ours is None) == (theirs is None)
                if ours and theirs:
                    same_figures(ours, theirs)
    page, text = tmp_path / "report.html", tmp_path / "report.md"
    done = toc("report", tmp_path / "evaluation.toc.json", "--format", f"html:{page},md:{text}")
    assert done.code == 0, done.err
    assert "Classification: label_clip" in done.out
    assert page.read_text().count("data:image/png;base64,") == 3 * len(record["evaluation"]["pictures"])
    assert "Generation: audio → video" in page.read_text()
    assert "Retrieval" in text.read_text()
    refused = toc("evaluate", run, data, "-o", tmp_path / "evaluation.toc.json")
    assert refused.code == 2
    assert "--force" in refused.err


def same_figures(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Results, or tables of results, whose values agree to rounding."""
    if "value" in ours:
        assert theirs["value"] == pytest.approx(ours["value"], abs=0.035)  # a clip of 30 may fall on the other side
        return
    for name in ours:
        same_figures(ours[name], theirs[name])


def test_a_codebook_alone(run: Path, data: Path, tmp_path: Path) -> None:
    """An artefact on the features it was made for: classification and retrieval of its codes."""
    plain = tmp_path / "features.h5"
    model, _ = load_model(run)
    with h5py.File(plain, "w") as file:
        for name in ("a_train", "val", "a_test"):
            split, group = open_split(data, name, model.config.modalities), file.create_group(name)
            batch = split.read(np.arange(len(split)))
            with torch.no_grad():
                for modality in ("audio", "video"):
                    group[modality] = model.encode(modality, batch.x[modality]).fine.numpy()
            group["label_clip"] = split.label("label_clip")
    features, artefact = tmp_path / "fine.h5", tmp_path / "fine.toc.safetensors"
    toc("evaluate", run, data, "--save-features", features)
    toc(
        "optimize",
        run / "model.safetensors",
        "--codebook",
        "codebook.fine.embedding",
        "--features",
        features,
        "-q",
        "-o",
        artefact,
    )
    refused = toc("evaluate", artefact, plain)
    assert refused.code == 2
    assert "is pruned already" in refused.err
    done = toc("evaluate", artefact, plain, "--keep", "none", "--seeds", 1, "--probe-epochs", 200, "--json")
    assert done.code == 0, done.err
    again = toc(
        "evaluate", artefact, plain, "--keep", "none", "--seeds", 1, "--probe-epochs", 1, "--part", "classification"
    )
    assert again.code == 0, again.err
    assert sorted(path.name for path in tmp_path.glob("evaluation-*")) == [
        "evaluation-1.toc.json",
        "evaluation-2.toc.json",
    ]
    assert len(again.out.splitlines()) <= 25
    record = json.loads(done.out)
    schema.validate(record)
    assert "Generation is left out: a codebook alone has no decoders" in done.err
    assert rows(record, "classification", **{"from": "audio", "to": "video"})[0]["results"]["full"]["value"] > 0.5
    assert rows(record, "retrieval")[0]["relevance"] == "clip"
    wide = toc("evaluate", artefact, data, "--keep", "none")
    assert wide.code == 3
    assert "has the codebook's width 8 in every split: audio 5, text 4, video 6" in wide.err


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"modalities": ("smell",)}, UsageError, "run has no modality 'smell'; it has video, audio, text"),
        ({"scoring_split": "nowhere"}, InputError, "no split 'nowhere'"),
        ({"retrieval_splits": ("nowhere",), "parts": ("retrieval",)}, InputError, "no split 'nowhere'"),
        ({"keep": ("0.5", "9")}, UsageError, "more than the codebook's 8 dimensions"),
        ({"keep": ("auto",)}, UsageError, "--keep auto is no share"),
        ({"criteria": ("tic",)}, UsageError, "--criterion 'tic' is unknown"),
        ({"probe_seeds": 0}, UsageError, "--seeds 0 trains no probe"),
        ({"parts": ("smelling",)}, UsageError, "--part 'smelling' is unknown"),
    ],
)
def test_what_cannot_be(run: Path, data: Path, options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        evaluate(run, data, EvaluateOptions(**options))


def test_data_of_another_extractor(run: Path, tmp_path: Path) -> None:
    narrow, mute = (labelled_clips(tmp_path / name) for name in ("narrow.h5", "mute.h5"))
    with h5py.File(narrow, "a") as file:
        for group in file.values():
            video = group["video"][:]
            del group["video"]
            group["video"] = video[..., :4]
    with pytest.raises(InputError, match=r"clips of Tx2x2x4; the run was trained on Tx2x2x6"):
        evaluate(run, narrow)
    with h5py.File(mute, "a") as file:
        for group in file.values():
            del group["text"]
    with pytest.raises(InputError, match="no modality 'text'"):
        evaluate(run, mute)
    record = evaluate(run, mute, EvaluateOptions(keep=(), modalities=("audio",), **SMALL))
    assert rows(record, "classification", **{"from": "audio", "to": "audio"})
    assert "it needs two of video, audio" in record["warnings"][-1]["text"]


def test_no_run_there(data: Path, tmp_path: Path) -> None:
    done = toc("evaluate", tmp_path / "nowhere", data)
    assert done.code == 3
    assert "toc train-fcid" in done.err
