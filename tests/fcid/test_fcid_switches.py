"""Every deviation from the published code is a switch that works alone, and does what its field says."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from fcid.clips import SPECS, clips, small_model
from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.aligner import Pair, StepLosses
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.codebook import EmaCodebook
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import (
    CodebookConfig,
    ModelConfig,
    corrected,
    from_dict,
    of_codebooks,
    plain,
    profile_config,
    published,
    to_dict,
    with_options,
)
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.model import build_model
from toc_cli.fcid.modules.semantic import MapSemanticEncoder


def field_of(config: ModelConfig, name: str) -> Any:
    part, _, inner = name.rpartition(".")
    return getattr(getattr(config, part) if part else config, inner)


def switched() -> list[Any]:
    """Every other value of every switch, alone, on both profiles and both alignments."""
    kinds = {"": get_type_hints(ModelConfig), "codebook.": get_type_hints(CodebookConfig)}
    values = {
        prefix + name: get_args(hint) if "Literal" in str(hint) else (True, False)
        for prefix, hints in kinds.items()
        for name, hint in hints.items()
        if name not in ("profile", "alignment") and ("Literal" in str(hint) or hint is bool)
    }
    return [
        pytest.param(base, name, value, id=f"{base.profile} {base.alignment} {name}={value}")
        for base in (published(), corrected(), published("uniform"), corrected("uniform"))
        for name, options in values.items()
        for value in options
        if value != field_of(base, name)
    ]


# Codes drawn from the features meet them at once, and the expanded distance has no gradient there.
MEETS_A_CODE = {"published codebook.init=features", "corrected codebook.distance=expanded"}


def step(model: Any, batch: Batch, number: int = 0) -> StepLosses:
    mi = torch.optim.Adam(model.mi.parameters(), 1e-3) if model.mi else None
    return model.training_step(batch, Draws.of_step(0, number), Comm(), mi)


@pytest.mark.parametrize(("base", "name", "value"), switched())
def test_alone(base: ModelConfig, name: str, value: Any) -> None:
    model = small_model(with_options(base, {name: value}), dropout=0.1)
    batch = clips(caption=torch.tensor([0, 0, 1, 2, 3]))
    losses = step(model, batch)
    losses.total.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameter_groups()["main"] if p.grad is not None])
    finite = bool(losses.total.isfinite() and gradients.isfinite().all())
    assert finite == (f"{base.profile} {name}={value}" not in MEETS_A_CODE)


@pytest.mark.parametrize("club", [0.0, 0.1])
@pytest.mark.parametrize("alignment", ["fine-coarse", "uniform"])
@pytest.mark.parametrize("profile", ["published", "corrected"])
def test_no_parameter_is_unused(alignment: Any, profile: Any, club: float) -> None:
    model = small_model(profile_config(profile, alignment), weights__club=club)
    step(model, clips()).total.backward()
    groups = model.parameter_groups()
    assert all(p.grad is not None for p in groups["main"])
    assert sorted(id(p) for group in model.clip_groups().values() for p in group) == sorted(map(id, groups["main"]))
    assert sorted(map(id, groups["main"] + groups["mi"])) == sorted(map(id, model.parameters()))


def test_a_weight_of_zero_leaves_the_term_and_its_parameters_out() -> None:
    weights = [f.name for f in dataclasses.fields(corrected().weights)]
    bare = small_model(corrected(), **{f"weights__{name}": 0.0 for name in weights if name != "infonce"})
    terms = step(bare, clips()).terms
    assert {name.split(".")[0] for name in terms} == {"infonce"}
    assert not bare.mi
    assert set(bare.clip_groups()) == {"encoder"}


# -- codebook ---------------------------------------------------------------------------------------------------------


def trained(config: CodebookConfig, x: dict[str, Tensor], steps: int) -> EmaCodebook:
    torch.manual_seed(0)
    table = EmaCodebook(config, 6, 3).double()
    masks = dict.fromkeys(x)
    for number in range(steps):
        table.start(x, masks, Draws.of_step(0, number), Comm(4))
        table.update(x, table.quantise(x, masks), masks, Draws.of_step(0, number), Comm(4))
    return table


def rows(*values: float) -> dict[str, Tensor]:
    x = torch.tensor(values, dtype=torch.float64)[:, None, None].expand(-1, 1, 3)
    return {"video": x, "audio": x, "text": x}


def test_init_uniform_explodes_and_features_does_not() -> None:
    base = published().codebook
    x = rows(1.0, 1.0, 1.0, 1.0)
    assert trained(base, x, 1).embedding.abs().max() > 20
    init = dataclasses.replace(base, init="features", ema="joint")
    assert trained(init, x, 5).embedding.abs().max() < 1.5


def test_init_features_takes_rows_of_the_first_batch() -> None:
    config = dataclasses.replace(corrected().codebook, jitter=0.0)
    table = EmaCodebook(config, 4, 3).double()
    x = {"video": torch.randn(4, 1, 3, dtype=torch.float64), "audio": torch.randn(4, 1, 3, dtype=torch.float64)}
    table.start(x, dict.fromkeys(x), Draws.of_step(0, 0), Comm(4))
    whole = torch.cat([r.flatten(0, 1) for r in x.values()])
    assert all(any(torch.equal(code, row) for row in whole) for code in table.embedding)
    assert len(table.embedding.unique(dim=0)) == 4
    assert torch.equal(table.ema_weight, table.embedding)
    assert bool((table.ema_count == 1).all())
    before = table.embedding.clone()
    table.start(rows(9.0), dict.fromkeys(rows(9.0)), Draws.of_step(0, 1), Comm(1))
    assert torch.equal(table.embedding, before)


@pytest.mark.parametrize(("ema", "decays"), [("sequential", 3), ("joint", 1)])
def test_ema_decays_once_per_modality_or_once(ema: Any, decays: int) -> None:
    config = dataclasses.replace(corrected().codebook, ema=ema, epsilon=0.0)
    table = trained(config, rows(1.0, 1.0), 1)
    before = table.ema_count.clone()
    x = rows(5.0, 5.0)
    found = table.quantise(x, dict.fromkeys(x))
    table.update(x, found, dict.fromkeys(x), Draws.of_step(0, 1), Comm(2))
    unhit = torch.ones(6, dtype=torch.bool)
    unhit[found.codes["video"].flatten()] = False
    torch.testing.assert_close(table.ema_count[unhit], before[unhit] * 0.99**decays)


def test_joint_ema_is_the_weighted_mean_of_features() -> None:
    config = dataclasses.replace(corrected().codebook, own=1.0, revival="features", dead_after=10**6)
    table = trained(config, rows(0.0, 4.0), 1)
    history_n, history_w = table.ema_count.clone(), table.ema_weight.clone()
    for value in (0.5, 3.0, 1.0):
        x = rows(value, value + 0.1)
        found = table.quantise(x, dict.fromkeys(x))
        history_n *= 0.99
        history_w *= 0.99
        for name in x:
            for row, code in zip(x[name].flatten(0, 1), found.codes[name].flatten(), strict=True):
                history_n[code] += 0.01
                history_w[code] += 0.01 * row
        table.update(x, found, dict.fromkeys(x), Draws.of_step(0, 1), Comm(2))
    torch.testing.assert_close(table.embedding, history_w / history_n[:, None])


@pytest.mark.parametrize(("revival", "holds"), [("codes", False), ("features", True)])
def test_revival_that_holds(revival: Any, holds: bool) -> None:
    config = dataclasses.replace(published().codebook, init="features", revival=revival, dead_after=3, jitter=0.0)
    table = trained(config, rows(1.0, 2.0), 1)
    table.embedding[5] = table.ema_weight[5] = 100.0
    table.ema_count[5] = 1.0
    table.age[5] = 3
    x = rows(1.0, 2.0)
    table.update(x, table.quantise(x, dict.fromkeys(x)), dict.fromkeys(x), Draws.of_step(0, 1), Comm(2))
    assert table.embedding[5].max() < 3
    # One EMA step in which it is not hit, and the published revival is undone: weight and count stayed behind.
    table.embedding[5] += 3
    table.ema_weight[5] += 3 * table.ema_count[5] if holds else 0
    table.update(x, table.quantise(x, dict.fromkeys(x)), dict.fromkeys(x), Draws.of_step(0, 2), Comm(2))
    assert (table.embedding[5].max() < 10) == holds


def test_a_revived_code_counts_as_one_row() -> None:
    """Code, weight and count move together, so the code is its weight over its count until something hits it."""
    config = dataclasses.replace(published().codebook, init="features", revival="features", dead_after=3, jitter=0.0)
    table = trained(config, rows(1.0, 2.0), 1)
    table.embedding[5] = table.ema_weight[5] = 100.0
    table.ema_count[5] = 0.25
    table.age[5] = 3
    x = rows(1.0, 2.0)
    table.update(x, table.quantise(x, dict.fromkeys(x)), dict.fromkeys(x), Draws.of_step(0, 1), Comm(2))
    assert float(table.ema_count[5]) == 1
    assert torch.equal(table.ema_weight[5] / table.ema_count[5], table.embedding[5])
    assert int(table.age[5]) == 0


def test_dead_codes_move_in_eval_mode_only_in_the_published_form() -> None:
    for revival, moves in (("codes", True), ("features", False)):
        config = dataclasses.replace(corrected().codebook, revival=revival, dead_after=3)
        table = trained(config, rows(1.0, 2.0), 1).eval()
        table.age.fill_(9)
        before = table.embedding.clone()
        x = rows(1.0)
        table.update(x, table.quantise(x, dict.fromkeys(x)), dict.fromkeys(x), Draws.of_step(0, 1), Comm(1))
        assert torch.equal(before, table.embedding) != moves


def test_jitter_constant_or_symmetric() -> None:
    for form in ("constant", "symmetric"):
        config = dataclasses.replace(published().codebook, jitter_form=form, dead_after=3, jitter=0.5)
        table = trained(config, rows(1.0), 1)
        hit = int(table.quantise(rows(1.0), dict.fromkeys(rows(1.0))).codes["video"])
        table.age.fill_(9)
        table.age[hit] = 0
        table.training = False
        x = rows(1.0)
        found = table.quantise(x, dict.fromkeys(x))
        table.update(x, found, dict.fromkeys(x), Draws.of_step(0, 1), Comm(1))
        moved = table.embedding[torch.arange(6) != hit] - table.embedding[hit]
        if form == "constant":
            torch.testing.assert_close(moved, torch.full_like(moved, -0.5))
        else:
            assert moved.min() < 0 < moved.max()
            assert moved.abs().max() <= 0.5


@pytest.mark.parametrize(("distance", "finite"), [("expanded", False), ("clamped", True)])
def test_distance_where_a_feature_is_a_code(distance: Any, finite: bool) -> None:
    table = trained(dataclasses.replace(corrected().codebook, distance=distance, jitter=0.0), rows(0.0, 3.0), 1)
    x = {"video": torch.zeros(2, 1, 3, dtype=torch.float64, requires_grad=True)}
    table.embedding[0] = 0.0
    usage = table.quantise(x, {"video": None}, temperature=-1).usage["video"]
    (grad,) = torch.autograd.grad(usage[:, 1].sum(), x["video"])
    assert bool(grad.isfinite().all()) == finite


# -- losses in the model ----------------------------------------------------------------------------------------------


def mutual_information(config: ModelConfig, repeats: int) -> Tensor:
    model = small_model(config)
    torch.manual_seed(1)
    x, y = (torch.randn(6, 8, dtype=torch.float64).repeat(repeats, 1) for _ in range(2))

    class Shift(Draws):
        def permutation(self, rows: int, name: str) -> Tensor:
            return torch.arange(rows).roll(1) if config.club_negatives == "any" else torch.arange(rows)

    return model.mutual_information("text", Pair(x, y, None, None), Shift(torch.Generator()), Comm())


def test_club_of_clip_vectors_grows_with_the_batch_only_in_the_published_form() -> None:
    base = with_options(published(), {"club_negatives": "other-clips"})
    torch.testing.assert_close(mutual_information(base, 2), 2 * mutual_information(base, 1))
    rowwise = with_options(base, {"club": "rows"})
    assert mutual_information(rowwise, 1) >= 0
    torch.testing.assert_close(mutual_information(rowwise, 2), mutual_information(rowwise, 1))


def test_negatives_are_never_the_other_modality_of_the_clip() -> None:
    model = small_model(corrected())
    for number in range(20):
        other = model._negatives("clip", 4, 2, None, Draws.of_step(0, number))
        assert bool((other % 4 != torch.arange(8) % 4).all())
    found = [small_model(published())._negatives("clip", 4, 2, None, Draws.of_step(0, n)) for n in range(20)]
    assert any(bool((other % 4 == torch.arange(8) % 4).any()) for other in found)


def test_equal_captions_are_no_negatives() -> None:
    batch = clips(4)
    equal = dataclasses.replace(batch, caption=torch.zeros(4, dtype=torch.int64))
    model = small_model(corrected())
    assert step(model, equal).terms["infonce.video.text"].item() == pytest.approx(0, abs=1e-12)
    assert step(small_model(corrected()), batch).terms["infonce.video.text"].item() > 0.1
    strict = small_model(corrected(), same_caption="negative")
    assert step(strict, equal).terms["infonce.video.text"].item() > 0.1


def test_seconds_of_the_same_clip_are_no_negatives() -> None:
    batch = clips(4)
    kept, strict = (small_model(corrected(), same_clip=form) for form in ("ignored", "negative"))
    loose = step(kept, batch).terms["second_infonce.video.audio"].item()
    assert loose < step(strict, batch).terms["second_infonce.video.audio"].item()
    general = kept(batch, Draws.of_step(0, 0), Comm(4)).general
    query, key = (torch.nn.functional.normalize(general[name], dim=-1) for name in ("video", "audio"))
    scores = torch.einsum("btd,cud->btcu", query, key) / kept.config.temperature  # clips b, c; seconds t, u
    expected = []
    for b in range(4):
        for t in range(4):
            for one in (scores[b, t], scores[:, :, b, t]):
                others = torch.cat([one[c] for c in range(4) if c != b])
                expected.append(torch.logsumexp(torch.cat([others, one[b, t : t + 1]]), 0) - one[b, t])
    assert loose == pytest.approx(torch.stack(expected).mean().item(), rel=1e-9)


def test_spatial_attention_weighs_positions() -> None:
    torch.manual_seed(0)
    constant = torch.randn(1, 4, 6).expand(9, 4, 6)
    attend, add = MapSemanticEncoder(6, "positions"), MapSemanticEncoder(6, "sum")
    add.load_state_dict({n: w for n, w in attend.state_dict().items() if "attention" not in n})
    torch.testing.assert_close(9 * attend(constant), add(constant))
    weights = attend.attention(torch.randn(4, 6), torch.randn(9, 4, 6))  # type: ignore[misc]
    torch.testing.assert_close(weights.sum(0), torch.ones(4))
    assert weights.std(0).min() > 0


def test_coarse_heads() -> None:
    for heads, dead in (("relu", True), ("linear", False)):
        model = small_model(corrected(), coarse_heads=heads).eval()
        coarse = model.encode("video", clips(20).x["video"]).coarse.detach()
        assert (float(coarse.min()) == 0) == dead


def test_coarse_targets_fixed_or_trained() -> None:
    for targets in ("fixed", "trained"):
        model = small_model(corrected(), coarse_targets=targets)
        batch, comm = clips(), Comm(5)
        features = model(batch, Draws.of_step(0, 0), comm)
        term = model.losses(features, batch, Draws.of_step(0, 0), comm).terms["coarse_reconstruction.text"]
        (grad,) = torch.autograd.grad(term, features.coarse["text"].clip, retain_graph=True)
        residual = model.decoder.coarse["text"](
            features.coarse_quantised.vectors["text"][:, 0], features.coarse["text"].specific
        )
        to_target = 2 * (features.coarse["text"].clip - residual) / residual.numel()
        has = torch.linalg.norm(grad - to_target) < torch.linalg.norm(grad)
        assert bool(has) == (targets == "trained")


def test_padding_is_masked_or_attended() -> None:
    batch = clips(mask={"text": torch.tensor([[True, True, False, False]] * 5)})
    other = dataclasses.replace(batch, x=batch.x | {"text": batch.x["text"].clone()})
    other.x["text"][:, 2:] = 7.0
    for padding, matters in (("masked", False), ("attended", True)):
        totals = [step(small_model(corrected(), padding=padding), b).total.item() for b in (batch, other)]
        assert (abs(totals[0] - totals[1]) > 1e-6) == matters


# -- levels and read-out ----------------------------------------------------------------------------------------------


def test_read_out_of_two_codebooks() -> None:
    model = small_model(corrected())
    step(model, clips())
    model.eval()
    x = clips().x
    encoded = model.encode("audio", x["audio"])
    assert encoded.fine_codes.shape == (5, 4)
    assert encoded.coarse_codes.shape == (5,)
    assert model.read_out(encoded, "fine").shape == (5, 4, 8)
    assert model.read_out(encoded, "coarse").shape == (5, 1, 8)
    both = model.read_out(encoded)
    assert both.shape == (5, 4, 16)
    assert torch.equal(both[..., 8:], model.read_out(encoded, "coarse").expand(5, 4, 8))
    fine = model.codebook["fine"].embedding[encoded.fine_codes]
    assert torch.equal(encoded.fine_vectors, fine)
    text = model.encode("text", x["text"])
    assert text.fine_codes is None
    assert model.read_out(text).shape == (5, 1, 8)
    rebuilt = model.decode("video", encoded.shared, model.encode("video", x["video"]).specific)
    assert rebuilt.shape == x["video"].shape


def test_read_out_has_unit_spread() -> None:
    model = small_model(corrected())
    table = model.codebook["fine"]
    table.embedding.copy_(torch.randn(12, 8) * 5 + 3)
    table.ema_count.copy_(torch.arange(12.0))
    use = table.ema_count / table.ema_count.sum()
    mean = sum(use[k] * table.embedding[k] for k in range(12))
    variance = sum(use[k] * ((table.embedding[k] - mean) ** 2).mean() for k in range(12))
    assert float(model._spread("fine")) == pytest.approx(float(variance.sqrt()))


@pytest.mark.parametrize(
    "config", [published(), published("uniform"), corrected("uniform")], ids=["fcid", "dcid", "uniform"]
)
def test_read_out_of_one_codebook(config: ModelConfig) -> None:
    model = small_model(config)
    step(model, clips())
    model.eval()
    for name, x in clips().x.items():
        assert model.read_out(model.encode(name, x)).shape == (5, 4, 8)


# -- what is missing --------------------------------------------------------------------------------------------------


def test_missing_clips_do_not_matter() -> None:
    """A clip without audio changes nothing through the values that stand in its place."""
    present = {"audio": torch.tensor([True, True, False, True, True])}
    batch = clips(present=present)
    other = dataclasses.replace(batch, x=batch.x | {"audio": batch.x["audio"].clone()})
    other.x["audio"][2] = 9.0
    for config in (corrected(), with_options(corrected(), {"weights.cpc": 1.0, "weights.coarse_infonce": 1.0})):
        first, second = (step(small_model(config), b) for b in (batch, other))
        for name, term in first.terms.items():
            torch.testing.assert_close(term, second.terms[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("alignment", ["fine-coarse", "uniform"])
@pytest.mark.parametrize("profile", ["corrected", "published"])
@pytest.mark.parametrize("name", ["text", "audio"])
def test_a_modality_missing_everywhere_leaves_finite_losses(alignment: Any, profile: Any, name: str) -> None:
    nobody = {name: torch.zeros(5, dtype=torch.bool)}
    losses = step(small_model(profile_config(profile, alignment)), clips(present=nobody))
    assert losses.total.isfinite()
    losses.total.backward()


def test_one_clip() -> None:
    for config in (corrected(), corrected("uniform")):
        model = small_model(config)
        losses = step(model, clips(1))
        assert losses.total.isfinite()


def test_masked_seconds_equal_shorter_clips() -> None:
    """Clips of 4 seconds of which 2 exist have the losses of clips of 2 seconds."""
    first_two = torch.tensor([[True, True, False, False]] * 5)
    long = clips(mask=dict.fromkeys(SPECS, first_two))
    short = Batch({name: x[:, :2] for name, x in long.x.items()})
    config = with_options(corrected(), {"weights.cpc": 0.0, "codebook.init": "uniform", "input_dropout": 0.0})
    first, second = (step(small_model(config), b) for b in (long, short))
    for name, term in first.terms.items():
        torch.testing.assert_close(term, second.terms[name], msg=lambda m, name=name: f"{name}: {m}")


# -- the plain baseline -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_plain_has_the_infonce_terms_alone(count: int) -> None:
    model = small_model(with_options(plain(), of_codebooks(count)))
    losses = step(model, clips())
    losses.total.backward()
    terms = {name.split(".")[0] for name in losses.terms}
    own = {"commitment", "fine_commitment"} if count == 2 else {"commitment"}  # what holds encoders to their codes
    assert terms == {"infonce", "second_infonce", "clip_infonce", "coarse_infonce"} | own
    assert not model.mi
    assert set(model.codebook) == ({"fine", "coarse"} if count == 2 else {"coarse"})
    assert all(p.grad is not None for p in model.parameter_groups()["main"])


def test_codes_of_the_plain_profile_follow_their_own_rows() -> None:
    """One EMA step by loops: every code moves to the rows that chose it, whatever the other modality chose at that second."""
    config = dataclasses.replace(plain().codebook, size=3, init="uniform", dead_after=1000)
    book = EmaCodebook(config, 3, 2).double().train()
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for buffer in (book.embedding, book.ema_weight):
        buffer.copy_(codes)
    book.ema_count.fill_(1.0)
    draw = torch.Generator().manual_seed(0)
    x = {name: torch.randn(4, 2, 2, dtype=torch.float64, generator=draw) for name in ("audio", "video")}
    masks: dict[str, Tensor | None] = dict.fromkeys(x)
    rows = torch.cat([part.reshape(-1, 2) for part in x.values()])
    nearest = torch.cdist(rows, codes).argmin(1)
    expected = []
    for code in range(3):
        mine = rows[nearest == code]
        weight = config.decay * codes[code] + (1 - config.decay) * mine.sum(0)
        count = config.decay + (1 - config.decay) * len(mine)
        expected.append(weight / count)
    book.update(x, book.quantise(x, masks), masks, Draws.of_step(0, 0), Comm())
    torch.testing.assert_close(book.embedding, torch.stack(expected))


def test_plain_and_codebooks_are_refused_where_they_mean_nothing() -> None:
    for call in (lambda: plain("uniform"), lambda: of_codebooks(3), lambda: of_codebooks(2, "uniform")):
        with pytest.raises(UsageError):
            call()
    assert of_codebooks(1, "uniform") == {}


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "alignment"),
    [("plain", "fine-coarse"), *product(("published", "corrected"), ("fine-coarse", "uniform"))],
)
def test_settings_round_trip(alignment: Any, profile: Any) -> None:
    config = with_options(profile_config(profile, alignment), {"width": 64, "specific_widths.audio": 3})
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"widht": 8}, "widht"),
        ({"codebook.sice": 8}, "codebook.sice"),
        ({"codebook.size": "many"}, "codebook.size"),
        ({"cmcm": "flat"}, "cmcm"),
        ({"width": 10}, "heads"),
        ({"fine": []}, "fine"),
        ({"codebook.decay": 1.0}, "decay"),
        ({"fine": ["audio"], "coarse": ["audio"]}, "audio"),
        ({"coarse": ["clip"]}, "clip"),
        ({"heads": 0}, "heads"),
        ({"cpc_steps": 0}, "cpc_steps"),
        ({"mi_steps": -1}, "mi_steps"),
        ({"temperature": 0.0}, "temperature"),
        ({"weights.club": float("nan")}, "weights.club"),
        ({"codebook.jitter": -1.0}, "codebook.jitter"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        with_options(corrected(), options)


def test_modalities_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="no modality text"):
        build_model(corrected(), {n: s for n, s in SPECS.items() if n != "text"})
    odd = SPECS | {"audio": dataclasses.replace(SPECS["audio"], length=3)}
    with pytest.raises(InputError, match=r"lengths \[3, 4\]"):
        build_model(corrected(), odd)
    with pytest.raises(InputError, match="lengths differ"):
        build_model(corrected("uniform"), odd)


def test_any_number_of_modalities() -> None:
    specs = {
        name: dataclasses.replace(SPECS["audio"], name=name) for name in ("left", "right", "depth", "label", "note")
    }
    options = {"fine": ["left", "right", "depth"], "coarse": ["label", "note"], "width": 8, "codebook.size": 5}
    model = build_model(with_options(corrected(), options), specs)
    terms = step(model, Batch({name: torch.randn(3, 4, 5) for name in specs})).terms
    assert {n for n in terms if n.startswith("second_infonce")} == {
        "second_infonce.left.right",
        "second_infonce.left.depth",
        "second_infonce.right.depth",
    }
    alone = with_options(corrected(), {"fine": ["left"], "coarse": [], "width": 8, "codebook.size": 5})
    losses = step(build_model(alone, specs), Batch({"left": torch.randn(3, 4, 5)}))
    assert losses.total.isfinite()
