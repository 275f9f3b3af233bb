"""Probes: scores against textbook formulas and brute force, and what a probe can and cannot learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toc_cli.errors import UsageError
from toc_cli.fcid.probe_fit import fit_probes
from toc_cli.fcid.probes import (
    Labelled,
    NeuralProbe,
    ProbeConfig,
    accuracy,
    best_thresholds,
    one_hot_seconds,
    predict_clips,
    predict_seconds,
    segment_f1,
)


def f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Harmonic mean of precision and recall of one class, as the textbook writes it."""
    hits = sum(bool(t) and bool(p) for t, p in zip(truth, predicted, strict=True))
    if hits == 0:
        return 0.0
    precision, recall = hits / sum(map(bool, predicted)), hits / sum(map(bool, truth))
    return 2 * precision * recall / (precision + recall)


def clips(seed: int, n: int = 120, seconds: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (N, T, 6) with one telling second, and the class of each second (background: `classes`)."""
    rng = np.random.default_rng(seed)
    labels = np.full((n, seconds), classes)
    x = 0.3 * rng.normal(size=(n, seconds, 6))
    at, label = rng.integers(0, seconds, n), rng.integers(0, classes, n)
    labels[np.arange(n), at] = label
    x[np.arange(n), at, label] += 3.0
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def labelled(seed: int, per_second: bool) -> Labelled:
    x, seconds = clips(seed)
    y = one_hot_seconds(seconds, 3, 4) if per_second else seconds.masked_fill(seconds == 3, -1).amax(dim=1)
    return Labelled(x, torch.ones(x.shape[:2], dtype=torch.bool), y)


def clip_probe(train: Labelled, val: Labelled, classes: int, config: ProbeConfig) -> NeuralProbe:
    return fit_probes([(train, val)], classes, [config], per_second=False)[0]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 4))
def test_segment_f1_is_macro_f1(seed: int, seconds: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    t, p = rng.random((2, 3, seconds, classes)) > 0.6
    mask = rng.random((3, seconds)) > 0.2
    got = segment_f1(torch.tensor(p), torch.tensor(t).long(), torch.tensor(mask))
    t, p = t[mask], p[mask]
    scores = [f1(t[:, c], p[:, c]) for c in range(classes) if (t | p)[:, c].any()]
    assert got == pytest.approx(np.mean(scores) if scores else 0.0, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 25))
def test_best_thresholds_are_those_of_a_search_over_all_cuts(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = np.round(rng.random((rows, 2)), 1 if seed % 2 else 6)  # with and without ties
    y = (rng.random((rows, 2)) > 0.5).astype(int)
    got = best_thresholds(torch.tensor(probabilities), torch.tensor(y)).numpy()
    for c in range(2):
        if not y[:, c].any():
            assert got[c] == 0.5
            continue
        cuts = [-1.0, *probabilities[:, c]]
        best = max(f1(y[:, c], probabilities[:, c] > cut) for cut in cuts)
        assert f1(y[:, c], probabilities[:, c] > got[c]) == pytest.approx(best)


def test_unlabelled_seconds_count_nowhere() -> None:
    y = torch.tensor([[[1, 0], [-1, -1]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert segment_f1(torch.tensor([[[True, False], [True, True]]]), y, mask) == 1.0
    assert accuracy(torch.tensor([1, 2, 0]), torch.tensor([1, -1, 1])) == 0.5


def test_background_has_no_column() -> None:
    got = one_hot_seconds(torch.tensor([[0, 2, 1, -1]]), 1, 3)
    assert got.tolist() == [[[1, 0], [0, 1], [0, 0], [-1, -1]]]


def test_a_clip_probe_finds_one_telling_second_and_repeats_itself() -> None:
    train, val, test = (labelled(seed, per_second=False) for seed in range(3))
    config = ProbeConfig(epochs=30, lr=1e-2)
    probe, again = (clip_probe(train, val, 3, config) for _ in range(2))
    assert accuracy(predict_clips(probe, test), test.y) > 0.97
    assert all(torch.equal(a, b) for a, b in zip(probe.parameters(), again.parameters(), strict=True))
    shuffled = Labelled(train.x, train.mask, train.y[torch.randperm(120, generator=torch.Generator().manual_seed(0))])
    assert accuracy(predict_clips(clip_probe(shuffled, val, 3, config), test), test.y) < 0.7


def test_a_second_probe_localises() -> None:
    train, val, test = (labelled(seed, per_second=True) for seed in range(3))
    probe = fit_probes([(train, val)], train.y.shape[-1], [ProbeConfig(epochs=30, lr=1e-2)], per_second=True)[0]
    assert segment_f1(predict_seconds(probe, test), test.y, test.mask) > 0.95


def test_masked_seconds_are_not_read() -> None:
    train, val = labelled(0, per_second=False), labelled(1, per_second=False)
    probe = clip_probe(train, val, 3, ProbeConfig(epochs=2))
    mask = torch.tensor([[True, True, False, False]])
    x, poisoned = train.x[:1].clone(), train.x[:1].clone()
    poisoned[:, 2:] = 1e6
    assert torch.equal(probe(x, mask), probe(poisoned, mask))


def test_data_that_do_not_fit() -> None:
    x = torch.zeros(3, 2, 4)
    with pytest.raises(UsageError, match="Probe data do not fit"):
        Labelled(x, torch.ones(3, 5, dtype=torch.bool), torch.zeros(3))
    nothing = Labelled(x, torch.ones(3, 2, dtype=torch.bool), torch.full((3,), -1))
    with pytest.raises(UsageError, match="no labelled clip"):
        clip_probe(nothing, nothing, 2, ProbeConfig())


def test_of_equal_epochs_the_better_trained_is_kept() -> None:
    """Validation clips that are right early on do not stop the training there."""
    train = labelled(5, per_second=False)
    val = Labelled(train.x[:4], train.mask[:4], train.y[:4])
    probes = [clip_probe(train, val, 3, ProbeConfig(epochs=epochs, lr=1e-2)) for epochs in (25, 60)]
    assert [accuracy(predict_clips(probe, val), val.y) for probe in probes] == [1, 1]
    early, late = (torch.nn.functional.cross_entropy(probe(val.x, val.mask), val.y).item() for probe in probes)
    assert late < early / 2


def alone(train: Labelled, val: Labelled, classes: int, config: ProbeConfig, per_second: bool) -> NeuralProbe:
    """One probe by the plain loop: a clip or a second at a time where that says it best."""
    probe = NeuralProbe(
        train.x.shape[-1], classes, per_second=per_second, seed=config.seed, width=config.width
    ).double()
    probe.standardise_(train)
    adam = torch.optim.Adam(probe.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)

    def loss(part: Labelled) -> torch.Tensor:
        logits = probe(part.x, part.mask)
        if not per_second:
            return torch.nn.functional.cross_entropy(logits, part.y)
        valid = part.mask[..., None] & (part.y >= 0)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[valid], part.y[valid].double())

    best, kept = (-1.0, -float("inf")), {}
    for _ in range(config.epochs):
        for rows in torch.randperm(len(train.x), generator=generator).split(config.batch_size):
            adam.zero_grad()
            loss(Labelled(train.x[rows], train.mask[rows], train.y[rows])).backward()
            adam.step()
        with torch.no_grad():
            if per_second:
                p = torch.sigmoid(probe(val.x, val.mask))
                probe.threshold = best_thresholds(p[val.mask], val.y[val.mask])
                score = segment_f1(p > probe.threshold, val.y, val.mask)
            else:
                score = accuracy(predict_clips(probe, val), val.y)
            value = (score, -float(loss(val)))
        if value > best:
            best, kept = value, {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    probe.load_state_dict(kept)
    return probe


@pytest.mark.parametrize("per_second", [False, True])
def test_a_batch_of_probes_is_each_of_them_alone(per_second: bool) -> None:
    """Several seeds and read-outs of two widths, some of them narrower views of others."""
    train, val = (labelled(seed, per_second=per_second) for seed in range(2))
    parts = []
    for width in (train.x.shape[-1], train.x.shape[-1], 2):
        parts.append(
            tuple(Labelled(part.x[..., :width].double() * (1 + len(parts)), part.mask, part.y) for part in (train, val))
        )
    configs = [ProbeConfig(epochs=6, lr=3e-3, seed=seed, width=11, batch_size=32) for seed in (0, 1, 2)]
    classes = train.y.shape[-1] if per_second else 3
    together = fit_probes(parts, classes, configs, per_second=per_second)
    for one, (own, held), config in zip(together, parts, configs, strict=True):
        single = alone(own, held, classes, config, per_second)
        torch.testing.assert_close(one(held.x, held.mask), single(held.x, held.mask), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one.threshold, single.threshold, rtol=1e-6, atol=1e-9, check_dtype=False)
