"""diffusers tokenizers: masked, sliced and consumer files in diffusers itself."""

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
from toc_cli.io.families.base import Mode
from toc_cli.libraries import run

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'toc-cli[test-libs]'")


@dataclass(frozen=True)
class Case:
    """One tokenizer and how many dimensions to keep."""

    build: Callable[[], torch.nn.Module]
    size: int
    size_key: str
    sliced: bool = True


CASES = {
    "vqmodel": Case(models.vqmodel, 7, "vq_embed_dim"),
    "vqmodel sized by its latent": Case(lambda: models.vqmodel(vq_embed_dim=None), 5, "vq_embed_dim"),
    "movq": Case(lambda: models.vqmodel(vq_embed_dim=8, norm_type="spatial", norm_num_groups=32), 5, "", sliced=False),
    "paella": Case(models.paella, 4, "latent_channels"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_the_three_forms(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = models.save(case.build(), tmp_path / "full")
    ckpt = open_checkpoint(folder)
    (book,) = detect(ckpt)
    full = models.read_quantiser(ckpt, book)
    rows = torch.randn(500, full.width)
    kept = models.choose(book, case.size)
    fill = models.constant(book, full, rows)
    assert fill.any()

    def written(mode: Mode) -> Path:
        return models.write(folder, detect, mode, [kept], [fill], tmp_path / mode)

    whole = run(folder, book, rows)
    assert models.flips(full, rows, full.tokens(rows), whole.tokens) == 0
    assert len(whole.tokens.unique()) > 10

    pruned = full.pruned(kept, fill)
    masked = run(written("masked"), book, rows)
    assert models.flips(pruned, rows, pruned.tokens(rows), masked.tokens) == 0
    assert (masked.tokens != whole.tokens).any()

    consumer = run(written("consumer"), book, rows)
    assert torch.equal(consumer.tokens, whole.tokens)
    assert not torch.allclose(consumer.outputs, whole.outputs)

    if not case.sliced:
        with pytest.raises(UsageError, match="sized by latent_channels"):
            written("sliced")
        return
    target = written("sliced")
    (small,) = detect(open_checkpoint(target))
    assert small.dim == case.size == models.config_of(target)[case.size_key]
    cut = rows if small.outer_width else rows[:, kept[0, 0]]
    sliced = run(target, small, cut)
    assert torch.equal(sliced.tokens, masked.tokens)
    gap = (sliced.outputs - masked.outputs).norm() / masked.outputs.norm()
    assert gap < 1e-5
