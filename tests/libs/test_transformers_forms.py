"""Every transformers codec: masked, sliced and consumer files load without a key too many or too few, run, and mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import library_models as models
from toc_cli.errors import UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.libraries import CODECS, Run, run
from toc_cli.libraries.loading import load

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'")


@dataclass(frozen=True)
class Case:
    """One codec, how many dimensions to keep, what it refuses, and which layers read its quantised vector."""

    build: Callable[[], torch.nn.Module]
    size: int
    refuses: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    codebooks: int = 1


CASES = {
    "encodec": Case(models.encodec, 15, readers=("decoder.layers.0.conv",)),
    "encodec zero padding": Case(lambda: models.encodec(pad_mode="constant"), 15, readers=("decoder.layers.0.conv",)),
    "encodec group norm": Case(
        lambda: models.encodec(norm_type="time_group_norm"), 15, ("sliced",), readers=("decoder.layers.0.conv",)
    ),
    "dac": Case(models.dac, 5, ("consumer",)),
    "dac of one level": Case(lambda: models.dac(n_codebooks=1), 5, readers=("quantizer.quantizers.0.out_proj",)),
    "mimi": Case(
        models.mimi,
        11,
        codebooks=2,
        readers=(
            "quantizer.semantic_residual_vector_quantizer.output_proj",
            "quantizer.acoustic_residual_vector_quantizer.output_proj",
        ),
    ),
    "mimi without projections": Case(
        lambda: models.mimi(codebook_dim=32, vector_quantization_hidden_dimension=32), 20, ("consumer",), codebooks=2
    ),
    "xcodec": Case(models.xcodec, 20, ("sliced",), readers=("fc1", "fc2")),
    "higgs": Case(models.higgs, 7, ("consumer",)),
    "wav2vec2": Case(models.wav2vec2, 7, readers=("project_q",)),
    "wav2vec2 conformer": Case(lambda: models.wav2vec2("Wav2Vec2Conformer"), 7, readers=("project_q",)),
    "unispeech": Case(lambda: models.wav2vec2("UniSpeech"), 7, readers=("project_q",)),
    "chameleon": Case(models.chameleon, 10, readers=("post_quant_conv",)),
    "janus": Case(models.janus, 5, readers=("post_quant_conv",)),
    "glm-image": Case(models.glm_image, 10, readers=("post_quant_conv",)),
    "emu3": Case(models.emu3, 5, ("sliced", "consumer")),
}


@dataclass
class Setup:
    """A saved model with one choice of dimensions, and what its library makes of it unpruned."""

    case: Case
    prepared: models.Prepared
    whole: list[Run]


@pytest.fixture(scope="module", params=CASES)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    case = CASES[request.param]
    torch.manual_seed(0)
    folder = models.save(case.build(), tmp_path_factory.mktemp("model") / "full")
    prepared = models.prepare(folder, case.size)
    assert len(prepared.books) == case.codebooks
    whole = prepared.runs(folder)
    for full, rows, found in zip(prepared.full, prepared.rows, whole, strict=True):
        assert models.flips(full, rows, full.tokens(rows), found.tokens) == 0
        assert len(found.tokens.unique()) > 10
    return Setup(case, prepared, whole)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


def test_masked_gives_the_tokens_of_the_pruned_codebook(setup: Setup, tmp_path: Path) -> None:
    prepared = setup.prepared
    folder = prepared.write("masked", tmp_path / "masked")
    for pruned, rows, found in zip(prepared.pruned, prepared.rows, prepared.runs(folder), strict=True):
        expected = pruned.tokens(rows)
        assert models.flips(pruned, rows, expected, found.tokens) == 0
        assert (expected == found.tokens).double().mean() > 0.995
        assert found.outputs.isfinite().all()
    assert models.config_of(folder) == models.config_of(prepared.folder)


def test_sliced_is_masked_in_less_space(setup: Setup, tmp_path: Path) -> None:
    prepared = setup.prepared
    if "sliced" in setup.case.refuses:
        with pytest.raises(UsageError, match="--emit sliced is not possible"):
            prepared.write("sliced", tmp_path / "sliced")
        assert not (tmp_path / "sliced").exists()
        return
    masked = prepared.runs(prepared.write("masked", tmp_path / "masked"))
    sliced = prepared.runs(prepared.write("sliced", tmp_path / "sliced"))
    for pruned, rows, one, other in zip(prepared.pruned, prepared.rows, masked, sliced, strict=True):
        assert models.flips(pruned, rows, one.tokens, other.tokens) == 0
        assert (one.tokens == other.tokens).double().mean() > 0.995
        assert relative(other.outputs, one.outputs) < 1e-5
    adds_layers = any(book.additions for book in prepared.books)
    assert adds_layers or size_of(tmp_path / "sliced") < size_of(tmp_path / "masked")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_consumer_keeps_every_token(setup: Setup, tmp_path: Path) -> None:
    prepared = setup.prepared
    if "consumer" in setup.case.refuses:
        with pytest.raises(UsageError, match="--emit consumer is not possible"):
            prepared.write("consumer", tmp_path / "consumer")
        return
    runs = prepared.runs(prepared.write("consumer", tmp_path / "consumer"))
    for full, found in zip(setup.whole, runs, strict=True):
        assert torch.equal(full.tokens, found.tokens)
    assert relative(runs[0].outputs, quantised_then_dropped(setup)) < 1e-5


def quantised_then_dropped(setup: Setup) -> torch.Tensor:
    """The unpruned model, with the dropped dimensions of what its readers see set to the constant on the way."""
    prepared = setup.prepared
    model, _ = load(prepared.folder)
    books = prepared.books
    by_reader = {
        reader: next(n for n, book in enumerate(books) if len(books) == 1 or reader.split(".")[1] in book.keys[0][0])
        for reader in setup.case.readers
    }
    for reader, n in by_reader.items():
        dim, heads = books[n].dim, books[n].heads
        keep = torch.zeros(heads, dim, dtype=torch.bool)
        for head in range(heads):
            keep[head, prepared.kept[n][0, head]] = True
        flat, values = keep.flatten(), prepared.fill[n].sum(0).flatten().float()

        def drop(module: torch.nn.Module, inputs: tuple, flat: torch.Tensor = flat, values: torch.Tensor = values):
            x = inputs[0]
            at = -1 if isinstance(module, torch.nn.Linear) else 1
            shape = [1] * x.dim()
            shape[at] = len(flat)
            return (torch.where(flat.reshape(shape), x, values.reshape(shape)),)

        model.get_submodule(reader).register_forward_pre_hook(drop)
    codec = CODECS[books[0].family]
    with torch.inference_mode():
        return codec.outputs(model, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi", "higgs", "chameleon", "glm-image"])
def test_a_rotation_folds_into_the_layers_around(name: str, tmp_path: Path) -> None:
    """Components instead of dimensions: E R, R^T W_in and W_out R load and give the tokens of the rotated codebook."""
    torch.manual_seed(0)
    prepared = models.prepare(models.save(CASES[name].build(), tmp_path / "full"), CASES[name].size)
    turns = []
    for kept, book in zip(prepared.kept, prepared.books, strict=True):
        square = torch.randn(*kept.shape[:2], book.dim, book.dim, dtype=torch.float64)
        turns.append(torch.linalg.qr(square).Q[..., : CASES[name].size])
    target = tmp_path / "sliced"
    models.write(prepared.folder, detect, "sliced", prepared.kept, prepared.fill, target, rotation=turns)
    books = detect(open_checkpoint(target))
    for n, (book, rows, turn) in enumerate(zip(books, prepared.rows, turns, strict=True)):
        rotated = prepared.full[n].rotated(turn, prepared.fill[n])
        read = rows if book.outer_width else (rows.double() @ turn[0, 0]).float()
        found = run(target, book, read).tokens
        assert (found == rotated.tokens(rows)).double().mean() > 0.99
