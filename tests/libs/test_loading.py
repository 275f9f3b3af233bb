"""What stops a run in a library: absent libraries, unknown classes, files that only seem to load."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import library_models as models
from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.libraries import run


@pytest.fixture
def encodec(fixtures_dir: Path) -> Path:
    return fixtures_dir / "transformers" / "encodec"


def attempt(folder: Path, like: Path) -> None:
    run(folder, detect(open_checkpoint(like))[0], torch.zeros(4, 24))


def test_an_absent_library_is_named(encodec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="transformers is not installed") as caught:
        attempt(encodec, encodec)
    assert caught.value.hint == "pip install transformers"


def test_a_family_without_a_library_says_so(fixtures_dir: Path) -> None:
    path = fixtures_dir / "layouts" / "rosinality_vqvae2.pt"
    with pytest.raises(UsageError, match="no library that loads"):
        attempt(path, path)


def test_a_file_that_loads_with_zeros_is_refused(encodec: Path, tmp_path: Path) -> None:
    """transformers loads a file without its codebook with a warning, and every code is zero."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'")
    ckpt = open_checkpoint(encodec)
    state = {key: ckpt.get(key) for key in ckpt.infos if not key.endswith("layers.1.codebook.embed")}
    models.save_folder(tmp_path / "lost", state, models.config_of(encodec))
    with pytest.raises(InputError, match=r"missing keys: .*layers\.1\.codebook\.embed"):
        attempt(tmp_path / "lost", encodec)


def test_an_unpatched_config_is_refused(encodec: Path, fixtures_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'")
    cut = open_checkpoint(fixtures_dir / "pruned" / "encodec_structural15")
    models.save_folder(tmp_path / "unpatched", {key: cut.get(key) for key in cut.infos}, models.config_of(encodec))
    with pytest.raises(InputError, match="transformers"):
        attempt(tmp_path / "unpatched", encodec)


def test_a_file_that_loads_and_does_not_run_is_refused(fixtures_dir: Path, tmp_path: Path) -> None:
    """X-Codec takes a smaller codebook_dim and fails to encode, because its layers are sized by its encoders."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'")
    source = fixtures_dir / "transformers" / "xcodec"
    ckpt = open_checkpoint(source)
    state = {key: ckpt.get(key) for key in ckpt.infos}
    state |= {key: table[:, :20].contiguous() for key, table in state.items() if "codebook.embed" in key}
    models.save_folder(tmp_path / "cut", state, models.config_of(source) | {"codebook_dim": 20})
    with pytest.raises(InputError, match="but does not run it"):
        run(tmp_path / "cut", detect(open_checkpoint(tmp_path / "cut"))[0], torch.zeros(4, 32))


@pytest.mark.parametrize("name", ["NoSuchModel", "os.system", "AutoConfig", ""])
def test_only_models_of_the_library_are_built(encodec: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'")
    models.save_folder(tmp_path / "odd", {"x": torch.zeros(1)}, {"architectures": [name]})
    with pytest.raises(InputError, match="which transformers does not have"):
        attempt(tmp_path / "odd", encodec)
