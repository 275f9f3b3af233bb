"""float32 and bf16 autocast: what is quantised and compared keeps full precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fcid.clips import clips, small_model
from fcid.golden_case import Case, RecordedDraws, cases, close
from fcid.test_golden_fcid_whole import FINE_COARSE, MI_NETS, TERMS, batch_of, model_of
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import corrected, profile_config
from toc_cli.fcid.draws import Draws


@pytest.mark.parametrize("profile", ["corrected", "published"])
@pytest.mark.parametrize("alignment", ["fine-coarse", "uniform"])
def test_autocast(alignment: Any, profile: Any) -> None:
    totals = []
    for enabled in (False, True):
        model = small_model(profile_config(profile, alignment), input_dropout=0.0).float()
        batch = clips(8).to("cpu", torch.float32)
        mi = torch.optim.Adam(model.mi.parameters(), 1e-3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = model.training_step(batch, Draws.of_step(0, 0), Comm(), mi)
        losses.total.backward()
        totals.append(losses.total.item())
        assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers())
        assert all(term.dtype == torch.float32 for term in losses.terms.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameter_groups()["main"])
    assert totals[0] != totals[1]
    assert totals[1] == pytest.approx(totals[0], rel=0.05)


def test_codes_under_autocast_are_the_nearest_in_full_precision() -> None:
    model = small_model(corrected()).float().eval()
    x = clips(16).to("cpu", torch.float32).x["audio"]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        encoded = model.encode("audio", x)
    assert encoded.fine is not None
    assert encoded.fine_codes is not None
    distance = torch.cdist(encoded.fine.double().flatten(0, 1), model.table("fine").embedding.double())
    assert torch.equal(encoded.fine_codes.flatten(), distance.argmin(1))


def test_first_step_in_float32_is_that_of_the_golden_case(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c07_train_*"):
        check_first_step(case)


def check_first_step(case: Case) -> None:
    model, batch = model_of(case).float(), batch_of(case, "step1.in.").to("cpu", torch.float32)
    perms = {ours: case[f"step1.in.perm_{theirs.lower()}"] for ours, theirs in MI_NETS.items()}
    draws = RecordedDraws(perms, int(case.scalar("step1.t_samples")))
    losses = model.training_step(batch, draws, Comm(), torch.optim.Adam(model.mi.parameters(), 1e-3))
    for theirs, ours in TERMS[FINE_COARSE].items():
        value = torch.stack([losses.terms[name] for name in ours]).sum()
        close(value, case.scalar(f"step1.{theirs}"), 3e-4, 1e-5, f"{case.name} {theirs}")
    close(losses.total, case.scalar("step1.total_loss"), 3e-4, 0, case.name)
