"""diffusers tokenizers: masked, sliced and consumer files in diffusers itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import library_models as models
from toc_cli.errors import UsageError

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
    prepared = models.prepare(models.save(case.build(), tmp_path / "full"), case.size)
    full, pruned, rows = prepared.full[0], prepared.pruned[0], prepared.rows[0]
    assert prepared.fill[0].any()
    (whole,) = prepared.runs(prepared.folder)
    assert models.flips(full, rows, full.tokens(rows), whole.tokens) == 0
    assert len(whole.tokens.unique()) > 10

    (masked,) = prepared.runs(prepared.write("masked", tmp_path / "masked"))
    assert models.flips(pruned, rows, pruned.tokens(rows), masked.tokens) == 0
    assert (masked.tokens != whole.tokens).any()

    (consumer,) = prepared.runs(prepared.write("consumer", tmp_path / "consumer"))
    assert torch.equal(consumer.tokens, whole.tokens)
    assert not torch.allclose(consumer.outputs, whole.outputs)

    target = tmp_path / "sliced"
    if not case.sliced:
        with pytest.raises(UsageError, match="sized by latent_channels"):
            prepared.write("sliced", target)
        return
    (sliced,) = prepared.runs(prepared.write("sliced", target))
    assert models.config_of(target)[case.size_key] == case.size
    assert models.flips(pruned, rows, masked.tokens, sliced.tokens) == 0
    assert (sliced.outputs - masked.outputs).norm() / masked.outputs.norm() < 1e-5
