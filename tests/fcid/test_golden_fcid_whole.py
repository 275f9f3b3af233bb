"""Golden cases of whole models: forward (c06), training steps (c07, c10b), the MI nets' updates (c07m)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcid.golden_case import Case, RecordedDraws, cases, close
from toc_cli.fcid import aligner
from toc_cli.fcid.aligner import Aligner, Pair
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.convert import BUFFERS, convert_published, our_name
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.head import ClipHead
from toc_cli.fcid.losses.club import GuessNet

FINE_COARSE, UNIFORM = "fine-coarse", "uniform"
MODALITIES = ("audio", "video", "text")


def model_of(case: Case) -> Aligner:
    """The case's weights and codebook, through the converter, dropout off."""
    state = case.generated() | {f"Encoder.quantizer.{name}": case[f"state0.{name}"] for name in BUFFERS}
    video = next(case[name] for name in ("in.video", "step1.in.video") if name in case)
    model = convert_published(state, length=video.shape[1], spatial=tuple(video.shape[2:4])).model.train()
    model.config = dataclasses.replace(model.config, dropout=0.0)
    return model


def batch_of(case: Case, prefix: str = "in.") -> Batch:
    return Batch({name: case[f"{prefix}{name}"] for name in MODALITIES})


def check_codebook(case: Case, model: Aligner, state: str, rtol: float) -> None:
    (level,) = model.codebook
    for theirs, ours in BUFFERS.items():
        if f"{state}.{theirs}" in case:
            close(getattr(model.codebook[level], ours), case[f"{state}.{theirs}"], rtol, 1e-12, f"{case.name} {ours}")


def total_of(terms: dict[str, Tensor], prefix: str) -> Tensor:
    return torch.stack([value for name, value in terms.items() if name.split(".")[0] == prefix]).sum()


def test_fcid_forward(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c06_fcid_forward_*"):
        model, batch = model_of(case), batch_of(case)
        check_inference(case, model)
        rows, clips = len(batch), torch.arange(len(batch))
        for x in batch.x.values():
            x.requires_grad_()
        perms = {"video": clips, "audio": clips, "text": clips, "clip": torch.arange(2 * rows)}
        draws, comm = RecordedDraws(perms, anchor=1), Comm().bind(rows)
        features = model(batch, draws, comm)
        check_features(case, features)
        check_codebook(case, model, "state1", 1e-9)
        terms = model.losses(features, batch, draws, comm).terms
        expected = {
            "fine_reconstruction": "fine_recon_loss",
            "coarse_reconstruction": "coarse_recon_loss",
            "commitment": "c_embedding_loss",
            "cmcm": "c_cmcm_loss",
        }
        for ours, theirs in expected.items():
            close(total_of(terms, ours), case.scalar(theirs), 1e-10, 0, f"{case.name} {theirs}")
        loss = torch.stack([total_of(terms, ours) for ours in expected]).sum()
        grads = dict(zip(batch.x, torch.autograd.grad(loss, list(batch.x.values())), strict=True))
        for name, grad in grads.items():
            close(grad.norm(), case.scalar(f"grad_norm.in.{name}"), 1e-6, 1e-10, f"{case.name} {name}")
            if f"grad.in.{name}" in case:
                close(grad, case[f"grad.in.{name}"], 1e-6, 1e-10, f"{case.name} {name}")


def check_features(case: Case, features: Any) -> None:
    video, length = features.specific["video"].features, case["in.video"].shape[1]
    side = case["out.v_spe"].shape[2]
    actual = {
        "v_spe": video.unflatten(0, (side, side)).unflatten(2, (-1, length)).permute(2, 3, 0, 1, 4),
        "v_club": features.specific["video"].pooled,
        "a_spe": features.specific["audio"].features,
    }
    for letter, name in (("v", "video"), ("a", "audio"), ("t", "text")):
        coarse, quantised = features.coarse[name], features.coarse_quantised
        actual |= {f"c{letter}": coarse.clip, f"c{letter}_gen": coarse.general, f"c{letter}_spe": coarse.specific}
        actual[f"c_{letter}_vq"] = quantised.vectors[name]
        assert torch.equal(quantised.codes[name][:, 0], case[f"out.c_{letter}_vq_indices"])
        if name in features.general:
            actual |= {f"{letter}_gen": features.general[name], f"f_{letter}": features.general[name]}
    for name, value in actual.items():
        close(value, case[f"out.{name}"], 1e-9, 1e-10, f"{case.name} {name}")


@torch.no_grad()
def check_inference(case: Case, model: Aligner) -> None:
    """The read-out per second and per clip; in eval mode nothing but the published usage counter moves."""
    model.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name in MODALITIES:
        encoded = model.encode(name, case[f"in.{name}"])
        assert torch.equal(encoded.fine_codes.flatten(), case[f"infer.{name}_split_indices"])
        assert torch.equal(encoded.coarse_codes, case[f"infer.{name}_clip_indices"])
        if f"infer.{name}_split_prequant" in case:
            close(encoded.fine, case[f"infer.{name}_split_prequant"], 1e-9, 1e-10, f"{case.name} {name}")
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    batch = batch_of(case)
    model(batch, RecordedDraws(), Comm().bind(len(batch)))
    check_codebook(case, model, "state1_eval", 0)
    model.load_state_dict(model.state_dict() | before)
    model.train()


class LeftoverAdam(torch.optim.Adam):
    """Leaves the gradients of the last inner step, as the published loop does: the last of six `zero_grad` is skipped."""

    calls = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.calls += 1
        if self.calls % 6:
            super().zero_grad(set_to_none)


TERMS = {
    FINE_COARSE: {
        "fine_recon_loss": ["fine_reconstruction.video", "fine_reconstruction.audio"],
        "coarse_recon_loss": [f"coarse_reconstruction.{n}" for n in MODALITIES],
        "c_embedding_loss": [f"commitment.{n}" for n in MODALITIES],
        "c_cmcm_loss": ["cmcm"],
        "mi_audiovisual_loss": ["club.clip"],
        "infonce_loss": ["infonce.video.text", "infonce.audio.text"],
        "cpc_loss": ["cpc"],
    }
    | {f"mi_{n}_loss": [f"club.{n}"] for n in MODALITIES},
    UNIFORM: {"cmcm_loss": ["cmcm"], "cpc_loss": ["cpc"]}
    | {f"{n}_recon_loss": [f"fine_reconstruction.{n}"] for n in MODALITIES}
    | {f"{n}_embed_loss": [f"commitment.{n}"] for n in MODALITIES}
    | {f"{n}_mine_loss": [f"club.{n}"] for n in MODALITIES},
}
MI_NETS = {"video": "Video", "audio": "Audio", "text": "Text", "clip": "AudioVisual"}
CLIPPED = {"encoder": "Encoder", "cpc": "CPC", "decoder": "Decoder", "sequence": "Text_ar_lstm"}


@pytest.mark.parametrize(("pattern", "alignment"), [("c07_train_*", FINE_COARSE), ("c10b_dcid_train_*", UNIFORM)])
def test_training(golden_dir: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, alignment: str) -> None:
    # The published code computes (and drops) the main loss's gradients of the MI nets; with this, so do we.
    monkeypatch.setattr(aligner, "_frozen", lambda module: nullcontext())
    for case in cases(golden_dir, pattern):
        model = model_of(case)
        if alignment == UNIFORM:
            check_uniform_forward(case, model)
        groups = model.parameter_groups()
        adam = torch.optim.Adam(groups["main"], lr=4e-4)
        mi_adam = LeftoverAdam(groups["mi"], lr=1e-3)
        step = 1
        while f"step{step}.in.audio" in case:
            training_step(case, model, step, alignment, adam, mi_adam)
            step += 1
        assert step > 1


def training_step(case: Case, model: Aligner, step: int, alignment: str, adam: Any, mi_adam: Any) -> None:
    what, rtol = f"{case.name} step {step}", 1e-9 if step == 1 else 1e-7
    batch, comm = batch_of(case, f"step{step}.in."), Comm().bind(len(case[f"step{step}.in.audio"]))
    perms = {ours: case[f"step{step}.in.perm_{theirs.lower()}"] for ours, theirs in MI_NETS.items() if ours in model.mi}
    draws = RecordedDraws(perms, int(case.scalar(f"step{step}.t_samples")))
    features = model(batch, draws, comm)
    trace = model.update_mi(features, batch, mi_adam, comm)
    for ours, values in trace.items():
        recorded = case[f"step{step}.out.lld_{MI_NETS[ours]}_mi_net"]
        close(torch.stack(values), recorded, rtol, 0, f"{what} likelihood of {ours}")
    losses = model.losses(features, batch, draws, comm)
    for theirs, ours in TERMS[alignment].items():
        value = torch.stack([losses.terms[name] for name in ours]).sum()
        close(value, case.scalar(f"step{step}.{theirs}"), rtol, 1e-13, f"{what} {theirs}")
    close(losses.total, case.scalar(f"step{step}.total_loss"), 1e-6, 0, what)
    losses.total.backward()
    check_fingerprint(case, model, f"step{step}.out.grad_fingerprint", alignment, rtol=1e-6, atol=1e-12, grad=True)
    check_gradients(case, model, f"step{step}.grad.", alignment)
    for name, parameters in clip_groups(model).items():
        norm = nn.utils.clip_grad_norm_(parameters, 0.5)
        close(norm, case.scalar(f"step{step}.clip_norm.{name}"), 1e-8 if step == 1 else 1e-6, 0, f"{what} {name}")
    adam.step()
    adam.zero_grad()
    atol = 1e-9 if step == 1 else 1e-7
    check_fingerprint(case, model, f"step{step}.out.param_fingerprint", alignment, rtol=1e-9, atol=100 * atol)
    check_codebook(case, model, f"state{step}", rtol)


def clip_groups(model: Aligner) -> dict[str, list[nn.Parameter]]:
    groups = {CLIPPED[name]: parameters for name, parameters in model.clip_groups().items()}
    return groups | {f"{MI_NETS[name]}_mi_net": list(net.parameters()) for name, net in model.mi.items()}


def published_layout(name: str, tensor: Tensor) -> Tensor:
    """Ours (kh * kw, C, O) -> (O, C, kh * kw), or (C, O, kh * kw) for an inverse block's transposed kernel."""
    if tensor.dim() != 3:
        return tensor
    transposed = "inverse_conv_block" in name and "res_block" not in name
    return tensor.permute((1, 2, 0) if transposed else (2, 1, 0))


def our_parameters(case: Case, model: Aligner, alignment: str) -> list[tuple[int, str, nn.Parameter | None]]:
    own = dict(model.named_parameters())
    return [(row, name, own.get(our_name(name, alignment) or "")) for row, name in enumerate(names_of(case))]


def names_of(case: Case) -> list[str]:
    return case.json.get("parameters") or list(case.generated())


def check_fingerprint(case: Case, model: Aligner, name: str, alignment: str, rtol: float, atol: float, grad: bool = False,
                      ) -> None:  # fmt: skip
    """Sum, norm and first four entries of every parameter (or gradient); NaN rows have no gradient."""
    recorded, seen = case[name], set()
    for row, published, parameter in our_parameters(case, model, alignment):
        if parameter is None:
            # Not ours, because the published forward ignores it: no gradient there, or a zero one.
            assert not grad or recorded[row].isnan().all() or not recorded[row].any(), published
            continue
        seen.add(id(parameter))
        value = parameter.grad if grad else parameter.detach()
        assert value is not None, published
        flat = published_layout(published, value).flatten()
        fingerprint = torch.cat([torch.stack([flat.sum(), flat.norm()]), flat[:4]])
        expected = recorded[row][: len(fingerprint)]
        scale = float(flat.norm()) if grad else 1.0
        close(fingerprint, expected, rtol, atol + rtol * scale, f"{case.name} {name} {published}")
    assert {id(p) for p in model.parameters()} == seen


def check_gradients(case: Case, model: Aligner, prefix: str, alignment: str) -> None:
    """Whole gradients, recorded in float32."""
    for _, published, parameter in our_parameters(case, model, alignment):
        if parameter is not None and prefix + published in case:
            assert parameter.grad is not None
            recorded = case[prefix + published]
            mine = published_layout(published, parameter.grad).reshape(recorded.shape)
            close(mine, recorded, 1e-6, 1e-10 + 1e-7 * float(recorded.abs().max()), f"{case.name} {published}")


def check_uniform_forward(case: Case, model: Aligner) -> None:
    batch, comm = batch_of(case, "step1.in."), Comm().bind(len(case["step1.in.audio"]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    features = model(batch, RecordedDraws(), comm)
    model.load_state_dict(model.state_dict() | before)
    side, length = case["fwd.v_enc"].shape[2], case["fwd.v_enc"].shape[1]
    video = features.specific["video"].features.unflatten(0, (side, side)).unflatten(2, (-1, length))
    actual = {"text_lstm": features.inputs["text"], "v_enc": video.permute(2, 3, 0, 1, 4)}
    actual["v_club"] = features.specific["video"].pooled
    for letter, name in (("a", "audio"), ("v", "video"), ("t", "text")):
        actual |= {f"{letter}_sem": features.general[name], f"{letter}_vq": features.quantised.vectors[name]}
        if name != "video":
            actual[f"{letter}_enc"] = features.specific[name].features
        assert torch.equal(features.quantised.codes[name].flatten(), case[f"fwd.{letter}_indices"])
        head = {n: w for n, w in case.generated().items() if n.startswith(f"Decoder.{name}_semantic_decoder.")}
        state = {n.split("decoder.")[1].replace("event_", ""): w for n, w in head.items()}
        logits = ClipHead(256, len(state["classifier.bias"])).double()
        logits.load_state_dict(state)
        close(logits(actual[f"{letter}_vq"]), case[f"fwd.class_{name}"], 1e-9, 1e-10, f"{case.name} {name}")
    for name, value in actual.items():
        close(value, case[f"fwd.{name}"], 1e-9, 1e-10, f"{case.name} {name}")


def test_mi_updates(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c07m_mi_updates_*"):
        model = mi_model(case)
        adam = torch.optim.Adam(model.mi.parameters(), lr=1e-3)
        call = 0
        while f"out.call{call}.lld_video" in case:
            trace = model.update_mi(None, Batch({"video": case["in.v_gen"]}), adam, Comm())
            for ours, theirs in MI_NETS.items():
                net = theirs.lower()
                close(torch.stack(trace[ours]), case[f"out.call{call}.lld_{net}"], 1e-9, 0, f"{case.name} {net}")
                norm = torch.cat([p.flatten() for p in model.mi[ours].parameters()]).norm()
                close(norm, case.scalar(f"call{call}.weight_norm.{net}"), 1e-9, 0, f"{case.name} {net}")
                for name, w in case.under(f"out.call{call}.w.{net}.p_").items():
                    close(model.mi[ours].state_dict()[name], w, 0, 1e-9, f"{case.name} {net} {name}")
            call += 1
        assert call > 0


class MiOnly(Aligner[None]):
    """Nothing but the four nets on fixed features."""

    def __init__(self, config: Any, nets: nn.ModuleDict, fixed: dict[str, Pair]) -> None:
        nn.Module.__init__(self)
        self.config, self.mi, self.fixed = config, nets, fixed

    def pairs(self, features: None, batch: Batch) -> dict[str, Pair]:
        return self.fixed

    forward: Callable[..., Any]
    terms: Callable[..., Any]
    stats: Callable[..., Any]

    def encode(self, modality: str, x: Tensor, mask: Tensor | None = None) -> Any: ...

    def decode(self, modality: str, shared: Tensor, specific: Tensor) -> Any: ...


def mi_model(case: Case) -> Aligner:
    from toc_cli.fcid.config import published

    nets = nn.ModuleDict()
    for ours, theirs in MI_NETS.items():
        weights = {n.removeprefix("p_"): w for n, w in case.under(f"w.{theirs.lower()}.").items()}
        hidden, width = weights["mu.0.weight"].shape
        nets[ours] = GuessNet(width, len(weights["mu.6.bias"]), 2 * hidden).double()
        nets[ours].load_state_dict(weights)
    stacked = (torch.cat([case["in.cv_gen"], case["in.ca_gen"]]), torch.cat([case["in.cv_spe"], case["in.ca_spe"]]))
    pairs = {
        "video": Pair(case["in.v_gen"], case["in.v_club"], None, None),
        "audio": Pair(case["in.a_gen"], case["in.a_spe"], None, None),
        "clip": Pair(*stacked, None, None, stacked=2),
        "text": Pair(case["in.ct_gen"], case["in.ct_spe"], None, None),
    }
    MiOnly.__abstractmethods__ = frozenset()
    return MiOnly(published(), nets, pairs)


def test_draws_are_those_of_the_step() -> None:
    first, again, next_step = (Draws.of_step(7, step).permutation(50, "x") for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_step)
