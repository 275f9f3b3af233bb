"""The codecs of the first libraries: EnCodec's own, and DAC's layout, both with weight norm in the old spelling."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import library_models as models
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.io.families.base import Mode


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class TestEncodec:
    """encodec 0.1.1, the library of facebookresearch."""

    @pytest.fixture
    def source(self, fixtures_dir: Path) -> Path:
        if importlib.util.find_spec("encodec") is None:
            pytest.skip("encodec is not installed: pip install --no-deps encodec")
        return fixtures_dir / "encodec_original" / "encodec_small.th"

    def load(self, path: Path, dimension: int = 24) -> torch.nn.Module:
        """The model as the fixture was made, by its own classes; they import torchaudio for files of sound only."""
        seanet = models.import_without("torchaudio", "encodec.modules.seanet")
        library = models.import_without("torchaudio", "encodec.model")
        quantization = models.import_without("torchaudio", "encodec.quantization")
        state = torch.load(path, weights_only=True)
        filters = state["encoder.model.0.conv.conv.bias"].numel()
        channels = {"dimension": dimension, "n_filters": filters, "n_residual_layers": 1}
        layers = {
            "ratios": ratios_of(state),
            "lstm": sum("encoder" in key and ".lstm.weight_ih" in key for key in state),
        }
        encoder = seanet.SEANetEncoder(**channels, **layers, causal=True, norm="weight_norm")
        decoder = seanet.SEANetDecoder(**channels, **layers, causal=True, norm="weight_norm")
        quantizer = quantization.ResidualVectorQuantizer(dimension=dimension, n_q=3, bins=64)
        model = library.EncodecModel(encoder, decoder, quantizer, [24.0], 24000, 1)
        model.load_state_dict(state, strict=True)
        return model.eval()

    def run(self, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, L) and sound for fixed noise."""
        sound = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)) * 0.3
        with torch.inference_mode():
            codes = model.quantizer.encode(model.encoder(sound), model.frame_rate, 24.0)
            return codes[:, 0].T, model.decoder(model.quantizer.decode(codes))

    def test_the_three_forms(self, source: Path, tmp_path: Path) -> None:
        whole = self.load(source)
        with torch.inference_mode():
            sound = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)) * 0.3
            rows = whole.encoder(sound)[0].T
        prepared = models.prepare(source, 15, sample=rows)
        pruned = prepared.pruned[0]
        masked = self.run(self.load(prepared.write("masked", tmp_path / "masked.th")))
        assert models.flips(pruned, rows, pruned.tokens(rows), masked[0][..., None]) == 0
        small = prepared.write("sliced", tmp_path / "sliced.th")
        assert small.stat().st_size < (tmp_path / "masked.th").stat().st_size
        sliced = self.run(self.load(small, 15))
        assert torch.equal(sliced[0], masked[0])
        assert relative(sliced[1], masked[1]) < 1e-5
        consumer = self.run(self.load(prepared.write("consumer", tmp_path / "consumer.th")))
        assert torch.equal(consumer[0], self.run(whole)[0])
        assert not torch.allclose(consumer[1], self.run(whole)[1], rtol=1e-5, atol=0)


def ratios_of(state: dict[str, torch.Tensor]) -> list[int]:
    """Upsampling ratios, from the kernels of the transposed convolutions (twice their stride)."""
    kernels = {
        int(key.split(".")[2]): w.shape[-1] for key, w in state.items() if key.endswith("convtr.convtr.weight_v")
    }
    return [kernels[at] // 2 for at in sorted(kernels)]


class TestDac:
    """descript-audio-codec's file: `state_dict` with weight_g and weight_v, widths in `metadata.kwargs`."""

    @staticmethod
    def quantiser(size: int = 8) -> torch.nn.Module:
        modeling = pytest.importorskip("transformers.models.dac.modeling_dac", reason="transformers is not installed")
        from transformers import DacConfig

        config = DacConfig(encoder_hidden_size=8, downsampling_ratios=[2, 2], n_codebooks=3, codebook_size=32)
        config.codebook_dim = size
        model = modeling.DacResidualVectorQuantizer(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old spelling is what the files have
            for level in model.quantizers:
                torch.nn.utils.weight_norm(level.in_proj)
                torch.nn.utils.weight_norm(level.out_proj)
        return torch.nn.ModuleDict({"quantizer": model}).eval()

    def run(self, path: Path, size: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, L) and vectors (N, W)."""
        model = self.quantiser(size)
        model.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
        with torch.inference_mode():
            vectors, codes, *_ = model["quantizer"](rows.T[None])
        return codes[0].T, vectors[0].T

    @pytest.mark.parametrize("stated", [8, [8, 8, 8]])
    def test_masked_and_sliced(self, tmp_path: Path, stated: int | list[int]) -> None:
        torch.manual_seed(0)
        source = tmp_path / "weights.pth"
        kwargs = {"encoder_dim": 8, "codebook_dim": stated}
        torch.save({"state_dict": self.quantiser().state_dict(), "metadata": {"kwargs": kwargs}}, source)
        prepared = models.prepare(source, 5)
        rows, pruned = prepared.rows[0], prepared.pruned[0]
        assert len(prepared.kept[0]) == 3
        masked = self.run(prepared.write("masked", tmp_path / "masked.pth"), 8, rows)
        assert models.flips(pruned, rows, pruned.tokens(rows), masked[0][..., None]) == 0
        sliced = self.run(prepared.write("sliced", tmp_path / "sliced.pth"), 5, rows)
        assert torch.equal(sliced[0], masked[0])
        assert relative(sliced[1], masked[1]) < 1e-5
        written = torch.load(tmp_path / "sliced.pth", weights_only=True)["metadata"]["kwargs"]
        assert written == {"encoder_dim": 8, "codebook_dim": [5, 5, 5] if isinstance(stated, list) else 5}


class TestDescript:
    """descript-audio-codec 1.0.0 itself; audiotools, which it imports for files of sound, is stood in for."""

    KWARGS: ClassVar[dict[str, Any]] = {
        "encoder_dim": 4, "encoder_rates": [2, 4], "latent_dim": 16, "decoder_dim": 32, "decoder_rates": [4, 2],
        "n_codebooks": 4, "codebook_size": 40, "sample_rate": 8000,
    }  # fmt: skip

    @pytest.fixture
    def library(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        spec = importlib.util.find_spec("dac")
        if spec is None:
            pytest.skip("descript-audio-codec is not installed: pip install --no-deps descript-audio-codec")
        sound, ml, base = (types.ModuleType(name) for name in ("audiotools", "audiotools.ml", "dac.model.base"))
        sound.AudioSignal = sound.STFTParams = ml.BaseModel = torch.nn.Module  # type: ignore[attr-defined]
        base.CodecMixin = type("CodecMixin", (), {"get_delay": lambda _: 0})  # type: ignore[attr-defined]
        packages = [types.ModuleType(name) for name in ("dac", "dac.model")]
        for package, below in zip(packages, ("", "model"), strict=True):
            package.__path__ = [str(Path(spec.origin or "").parent / below)]
        for module in (sound, ml, base, *packages):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        yield importlib.import_module("dac.model.dac")
        for name in [name for name in sys.modules if name.startswith("dac.")]:
            monkeypatch.delitem(sys.modules, name)

    def run(self, library: Any, path: Path, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, L) and sound of the model that a file describes."""
        content = torch.load(path, weights_only=True)
        model = self.build(library, content["metadata"]["kwargs"])
        model.load_state_dict(content["state_dict"], strict=True)
        with torch.inference_mode():
            z, codes, *_ = model.encode(sound)
            return codes[0].T, model.decode(z)

    @staticmethod
    def build(library: Any, kwargs: dict[str, Any]) -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return library.DAC(**kwargs).eval()

    @pytest.mark.parametrize("width", [8, [6, 6, 6, 6]])
    def test_masked_and_sliced(self, library: Any, tmp_path: Path, width: int | list[int]) -> None:
        torch.manual_seed(0)
        kwargs = {**self.KWARGS, "codebook_dim": width}
        model = self.build(library, kwargs)
        source = tmp_path / "weights.pth"
        torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": kwargs}}, source)
        sound = torch.randn(1, 1, 4000) * 0.3
        with torch.inference_mode():
            rows = model.encoder(sound)[0].T
        prepared = models.prepare(source, 5, sample=rows)
        full, pruned = prepared.full[0], prepared.pruned[0]
        assert models.flips(full, rows, full.tokens(rows), self.run(library, source, sound)[0][..., None]) == 0
        masked = self.run(library, prepared.write("masked", tmp_path / "masked.pth"), sound)
        assert models.flips(pruned, rows, pruned.tokens(rows), masked[0][..., None]) == 0
        sliced = self.run(library, prepared.write("sliced", tmp_path / "sliced.pth"), sound)
        assert torch.equal(sliced[0], masked[0])
        assert relative(sliced[1], masked[1]) < 1e-5
        assert (tmp_path / "sliced.pth").stat().st_size < source.stat().st_size

    def test_levels_of_unlike_widths_are_masked_one_by_one(self, library: Any, tmp_path: Path) -> None:
        """Level l reads what the levels before it left, so its own rows are the residuals of the library."""
        torch.manual_seed(0)
        kwargs = {**self.KWARGS, "codebook_dim": [5, 4, 6, 4]}
        model = self.build(library, kwargs)
        source = tmp_path / "weights.pth"
        torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": kwargs}}, source)
        sound = torch.randn(1, 1, 4000) * 0.3
        prepared = models.prepare(source, 3, sample=model.encoder(sound)[0].T.detach())
        assert [book.dim for book in prepared.books] == [5, 4, 6, 4]
        tokens, _ = self.run(library, prepared.write("masked", tmp_path / "masked.pth"), sound)
        rows = prepared.rows[0]
        assert models.flips(prepared.pruned[0], rows, prepared.pruned[0].tokens(rows), tokens[:, :1, None]) == 0


@pytest.mark.parametrize("mode", ["masked", "consumer"])
def test_a_new_spelling_reads_as_the_old(fixtures_dir: Path, tmp_path: Path, mode: Mode) -> None:
    """torch renamed g and v; the same edit must come out of both files."""
    source = fixtures_dir / "encodec_original" / "encodec_small.th"
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = torch.load(source, weights_only=True)
    for old, new in names.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    renamed = tmp_path / "new.th"
    torch.save(state, renamed)
    written = []
    for path in (source, renamed):
        models.prepare(path, 15).write(mode, target := tmp_path / f"{path.stem}.{mode}.th")
        written.append(open_checkpoint(target))
    for key in written[0].infos:
        other = key
        for old, new in names.items():
            other = other.replace(old, new)
        assert torch.equal(written[0].get(key), written[1].get(other))
    assert detect(written[1])[0].dim == 24
