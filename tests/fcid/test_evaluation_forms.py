"""The forms of TOC: against their definitions, written out with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.evaluation.census import Scored
from toc_cli.fcid.evaluation.forms import Variant, cut, full, variants
from toc_cli.ops.quantiser import quantiser

K, D, N = 12, 8, 300


def census(pairs: bool = True) -> Scored:
    """Random codes, and two modalities whose first two dimensions agree."""
    rng = np.random.default_rng(0)
    codes = torch.tensor(rng.normal(size=(K, D)) * np.linspace(2, 0.2, D), dtype=torch.float32)
    a = rng.normal(size=(N, D))
    b = rng.normal(size=(N, D))
    b[:, :2] = a[:, :2] + 0.1 * rng.normal(size=(N, 2))
    rows = [torch.tensor(x, dtype=torch.float32) for x in (a, b)]
    return Scored(quantiser([codes[None]]), rows, [(rows[0], rows[1])] if pairs else [])


def nearest(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return ((x[:, None] - codes[None]) ** 2).sum(-1).argmin(1)


def by_id(found: list[Variant]) -> dict[str, Variant]:
    return {variant.id: variant for variant in found}


def test_slice_and_subspace_are_what_they_say() -> None:
    own = census()
    found = by_id(variants({"book": own}, ["0.5"], ["variance"], (0.7, 0.3), 2))
    codes, x = own.full.levels[0].codes[0].double().numpy(), own.rows[0]
    kept = np.sort(np.argsort(-codes.var(axis=0), kind="stable")[:4])
    expected = {
        "variance 0.5 slice": codes[nearest(x.double().numpy(), codes)][:, kept],
        "variance 0.5 subspace": codes[:, kept][nearest(x.double().numpy()[:, kept], codes[:, kept])],
    }
    usage = np.bincount(np.concatenate([nearest(r.double().numpy(), codes) for r in own.rows]), minlength=K)
    assert (own.usage == usage).all()
    mean = usage @ codes / usage.sum()
    for id, vectors in expected.items():
        form = found[id].draw(0)["book"]
        tokens = form.choose.tokens(x)
        assert form.stored(tokens).numpy() == pytest.approx(vectors)
        whole = np.broadcast_to(mean, (N, D)).copy()
        whole[:, kept] = vectors
        assert form.whole(tokens).numpy() == pytest.approx(whole)  # dropped dimensions: the mean of the codes in use
        assert form.continuous(x).numpy() == pytest.approx(x[:, kept].numpy())


def test_worst_and_random_controls_have_the_same_size() -> None:
    found = by_id(variants({"book": census()}, ["3"], ["variance"], (0.7, 0.3), 3))
    assert list(found) == [
        "full", "variance 3 slice", "variance 3 subspace", "worst variance 3 slice", "worst variance 3 subspace",
        "random 3 slice", "random 3 subspace",
    ]  # fmt: skip
    best, worst = (
        found[id].draw(0)["book"].stand.levels[0].kept for id in ("variance 3 slice", "worst variance 3 slice")
    )
    assert best is not None
    assert worst is not None
    assert not set(best[0].tolist()) & set(worst[0].tolist())
    drawn = [draw["book"].stand.levels[0].kept for draw in found["random 3 slice"].draws]
    assert len({tuple(kept[0].tolist()) for kept in drawn if kept is not None}) > 1
    assert found["random 3 slice"].describe()["kept"] == {"book": 3}
    assert found["random 3 slice"].draw(4) is found["random 3 slice"].draws[1]


def test_xcov_keeps_what_the_modalities_share() -> None:
    own = census()
    found = by_id(variants({"book": own}, ["2"], ["xcov"], (0.7, 0.3), 1))
    form = found["xcov 2 subspace"].draw(0)["book"]
    rotation = form.stand.levels[0].rotation
    assert rotation is not None
    assert (rotation[0, :2].square().sum(0) > 0.95).all()  # the leading components lie in the shared dimensions
    x, r = own.rows[0].double().numpy(), rotation[0].numpy()
    codes = own.full.levels[0].codes[0].double().numpy() @ r
    tokens = form.choose.tokens(own.rows[0])
    assert (tokens[:, 0, 0].numpy() == nearest(x @ r, codes)).all()
    assert form.stored(tokens).numpy() == pytest.approx(codes[tokens[:, 0, 0]], abs=1e-6)
    worst = found["worst xcov 2 subspace"].draw(0)["book"].stand.levels[0].rotation
    assert worst is not None
    assert np.abs(worst[0].numpy().T @ r).max() < 1e-9


def test_all_dimensions_kept_is_the_full_codebook() -> None:
    own = census()
    whole = full({"book": own.full}).draw(0)["book"]
    for criterion in ("toc", "toc-live", "usage-toc", "features", "similarity", "xmodal"):
        stand = cut(own, "1.0", own.rank(criterion), None)
        assert (stand.tokens(own.rows[0]) == whole.choose.tokens(own.rows[0])).all()


def test_spread_is_the_codes_own() -> None:
    own = census()
    codes, p = own.full.levels[0].codes[0].double().numpy(), own.usage / own.usage.sum()
    centred = codes - p @ codes
    assert own.spread == pytest.approx(np.sqrt((p @ centred**2).mean()))


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="two modalities"):
        variants({"book": census(pairs=False)}, ["0.5"], ["xcov"], (0.7, 0.3), 1)
    with pytest.raises(UsageError, match="more than the codebook's 8"):
        variants({"book": census()}, ["9"], ["toc"], (0.7, 0.3), 1)
