"""Every transformers codec: masked, sliced and consumer files load without a key too many or too few, run, and mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import library_models as models
import pytest
import torch

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.libraries import CODECS, Run, run

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
ROWS = 500


@dataclass
class Setup:
    """A saved model, its codebooks, and one choice of dimensions for each."""

    case: Case
    folder: Path
    kept: list[torch.Tensor]
    fill: list[torch.Tensor]
    rows: list[torch.Tensor]
    expected: list[torch.Tensor]
    """Tokens of the pruned codebook, by `ops`."""
    full: list[Run]

    def write(self, mode: str, target: Path) -> Path:
        return models.write(self.folder, detect, mode, self.kept, self.fill, target)

    def runs(self, folder: Path) -> list[Run]:
        """The library's view of a written folder, codebook by codebook."""
        books = detect(open_checkpoint(folder))
        return [
            run(folder, book, rows if rows.shape[1] in (book.dim, book.outer_width) else rows[:, kept[0, 0]])
            for book, rows, kept in zip(books, self.rows, self.kept, strict=True)
        ]


@pytest.fixture(scope="module", params=CASES)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    case = CASES[request.param]
    torch.manual_seed(0)
    folder = models.save(case.build(), tmp_path_factory.mktemp("model") / "full")
    ckpt = open_checkpoint(folder)
    books = detect(ckpt)
    assert len(books) == case.codebooks
    found = Setup(case, folder, [], [], [], [], [])
    for n, book in enumerate(books):
        full = models.read_quantiser(ckpt, book)
        rows = torch.randn(ROWS, full.width, generator=torch.Generator().manual_seed(n))
        kept = models.choose(book, case.size, seed=n)
        fill = models.constant(book, full, rows)
        found.rows.append(rows)
        found.kept.append(kept)
        found.fill.append(fill)
        found.expected.append(full.pruned(kept, fill).tokens(rows))
        found.full.append(run(folder, book, rows))
        assert models.flips(full, rows, full.tokens(rows), found.full[-1].tokens) == 0
        assert len(found.full[-1].tokens.unique()) > 10
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


def pruned_quantisers(setup: Setup) -> list:
    ckpt = open_checkpoint(setup.folder)
    return [
        models.read_quantiser(ckpt, book).pruned(kept, fill)
        for book, kept, fill in zip(detect(ckpt), setup.kept, setup.fill, strict=True)
    ]


def test_masked_gives_the_tokens_of_the_pruned_codebook(setup: Setup, tmp_path: Path) -> None:
    folder = setup.write("masked", tmp_path / "masked")
    for pruned, rows, expected, found in zip(
        pruned_quantisers(setup), setup.rows, setup.expected, setup.runs(folder), strict=True
    ):
        assert models.flips(pruned, rows, expected, found.tokens) == 0
        assert (expected == found.tokens).double().mean() > 0.995
        assert found.outputs.isfinite().all()
    assert models.config_of(folder) == models.config_of(setup.folder)


def test_sliced_is_masked_in_less_space(setup: Setup, tmp_path: Path) -> None:
    if "sliced" in setup.case.refuses:
        with pytest.raises(UsageError, match="--emit sliced is not possible"):
            setup.write("sliced", tmp_path / "sliced")
        assert not (tmp_path / "sliced").exists()
        return
    masked = setup.runs(setup.write("masked", tmp_path / "masked"))
    sliced = setup.runs(setup.write("sliced", tmp_path / "sliced"))
    for pruned, rows, one, other in zip(pruned_quantisers(setup), setup.rows, masked, sliced, strict=True):
        assert models.flips(pruned, rows, one.tokens, other.tokens) == 0
        assert (one.tokens == other.tokens).double().mean() > 0.995
        assert relative(other.outputs, one.outputs) < 1e-5
    if len(open_checkpoint(tmp_path / "sliced").infos) == len(open_checkpoint(setup.folder).infos):
        assert size_of(tmp_path / "sliced") < size_of(tmp_path / "masked")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_consumer_keeps_every_token(setup: Setup, tmp_path: Path) -> None:
    if "consumer" in setup.case.refuses:
        with pytest.raises(UsageError, match="--emit consumer is not possible"):
            setup.write("consumer", tmp_path / "consumer")
        return
    folder = setup.write("consumer", tmp_path / "consumer")
    runs = setup.runs(folder)
    for full, found in zip(setup.full, runs, strict=True):
        assert torch.equal(full.tokens, found.tokens)
    assert relative(runs[0].outputs, quantised_then_dropped(setup)) < 1e-5


def quantised_then_dropped(setup: Setup) -> torch.Tensor:
    """The unpruned model, with the dropped dimensions of what its readers see set to the constant on the way."""
    from toc_cli.libraries.loading import load

    model, _ = load(setup.folder)
    books = detect(open_checkpoint(setup.folder))
    by_reader = {
        reader: next(n for n, book in enumerate(books) if len(books) == 1 or reader.split(".")[1] in book.keys[0][0])
        for reader in setup.case.readers
    }
    for reader, n in by_reader.items():
        dim, heads = books[n].dim, books[n].heads
        keep = torch.zeros(heads, dim, dtype=torch.bool)
        for head in range(heads):
            keep[head, setup.kept[n][0, head]] = True
        flat, values = keep.flatten(), setup.fill[n].sum(0).flatten().float()

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
