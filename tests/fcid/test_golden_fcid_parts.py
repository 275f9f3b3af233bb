"""Golden cases of the codebook (c05, c10a) and of single modules (c06_sub, c10_sub)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fcid.golden_case import Case, RecordedDraws, cases, close
from toc_cli.fcid.codebook import EmaCodebook, equal_clips, perplexity
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import published
from toc_cli.fcid.convert import BUFFERS, our_layout, our_name
from toc_cli.fcid.losses.cmcm import code_scores, published_cmcm
from toc_cli.fcid.losses.commitment import commitment
from toc_cli.fcid.modules.decoder import MapDecoder, VectorDecoder
from toc_cli.fcid.modules.semantic import MapSemanticEncoder
from toc_cli.fcid.modules.specific import MapSpecificEncoder, VectorSpecificEncoder
from toc_cli.fcid.modules.temporal import TemporalBlock

MODALITIES = ("audio", "video", "text")


def codebook_losses(x: dict[str, Tensor], found: object) -> tuple[dict[str, Tensor], Tensor]:
    raw = {name: codes.flatten(0, 1) for name, codes in found.raw.items()}  # type: ignore[attr-defined]
    losses = {
        name: commitment(
            x[name].flatten(0, 1), raw[name], [(raw[n], None) for n in MODALITIES if n != name], None, Comm()
        )
        for name in MODALITIES
    }
    use = found.usage  # type: ignore[attr-defined]
    pairs = [("audio", "video"), ("audio", "text"), ("text", "video")]
    return losses, sum(published_cmcm(code_scores(use[a], use[b])) for a, b in pairs) / 2  # type: ignore[return-value]


@pytest.mark.parametrize("pattern", ["c05_ema_*", "c10a_dcid_ema_*"])
def test_codebook(golden_dir: Path, pattern: str) -> None:
    for case in cases(golden_dir, pattern):
        config = published("uniform" if case.json["tree"] == "dcid" else "fine-coarse").codebook
        size, width = case["state0.embedding"].shape
        table = EmaCodebook(config, size, width).double()
        table.load_state_dict(
            {ours: case[f"state0.{theirs}"] for theirs, ours in BUFFERS.items()} | {"started": torch.tensor(True)}
        )
        step = 1
        while f"step{step}.in.audio" in case:
            codebook_step(case, table, step)
            step += 1
        assert step > 1


def codebook_step(case: Case, table: EmaCodebook, step: int) -> None:
    what = f"{case.name} step {step}"
    table.train(bool(case.scalar(f"step{step}.training")))
    x = {name: case[f"step{step}.in.{name}"].requires_grad_() for name in MODALITIES}
    masks = dict.fromkeys(MODALITIES)
    found = table.quantise(x, masks, temperature=-1)
    losses, cmcm = codebook_losses(x, found)
    revival = [case[f"step{step}.in.{n}"] for n in ("randint", "jitter") if f"step{step}.in.{n}" in case]
    detached = {name: rows.detach() for name, rows in x.items()}
    table.update(detached, found, masks, RecordedDraws(revival=revival), Comm())
    grads = torch.autograd.grad(sum(losses.values()) + cmcm, list(x.values()))
    for name, grad in zip(MODALITIES, grads, strict=True):
        assert torch.equal(found.codes[name].flatten(), case[f"step{step}.out.{name}_indices"])
        close(found.vectors[name], case[f"step{step}.out.{name}_quantised"], 1e-10, 1e-13, what)
        close(losses[name], case.scalar(f"step{step}.loss_{name}"), 1e-10, 0, what)
        close(grad, case[f"step{step}.grad.{name}"], 1e-7, 1e-11, what)
        if f"step{step}.perplexity_{name}" in case.json["scalars"]:
            expected = case.scalar(f"step{step}.perplexity_{name}")
            close(perplexity(found.codes[name], len(table.embedding)), expected, 1e-7, 0, what)
    close(cmcm, case.scalar(f"step{step}.cmcm"), 1e-10, 0, what)
    assert equal_clips(found.codes, len(table.embedding)) == case.scalar(f"step{step}.equal_num")
    for theirs, ours in BUFFERS.items():
        close(getattr(table, ours), case[f"state{step}.{theirs}"], 1e-10, 1e-14, f"{what} {ours}")


def load_published(module: nn.Module, case: Case, theirs: str, ours: str) -> dict[str, str]:
    """Load `w.*` as the whole model's converter names them: `theirs` and `ours` are what stands before the module."""
    own, names = module.state_dict(), {}
    for name in case.under("w."):
        found = our_name(theirs + name.replace("input_linear", "audio_linear"), "fine-coarse") or ""
        if found.removeprefix(ours) in own:
            names[name] = found.removeprefix(ours)
    module.double().load_state_dict({mine: our_layout(name, case[f"w.{name}"]) for name, mine in names.items()})
    return names


def check_module(case: Case, outputs: list[Tensor], inputs: dict[str, Tensor], module: nn.Module, names: dict[str, str],
                 ) -> None:  # fmt: skip
    for i, out in enumerate(outputs):
        close(out, case[f"out.{i}"], 1e-10, 1e-11, case.name)
    total = sum((out * case[f"in.R{i}"]).sum() for i, out in enumerate(outputs))
    parameters = dict(module.named_parameters())
    grads = torch.autograd.grad(total, [*inputs.values(), *parameters.values()])  # type: ignore[arg-type]
    for name, grad in zip(inputs, grads, strict=False):
        close(grad, case[f"grad.in.{name}"], 1e-8, 1e-10, f"{case.name} {name}")
    ours = dict(zip(parameters, grads[len(inputs) :], strict=True))
    for theirs in case.under("w."):
        mine = ours.pop(names[theirs], None) if theirs in names else None
        norm = case.scalar(f"gradnorm.{theirs}")
        close(0.0 if mine is None else mine.norm(), norm, 1e-8, 1e-10, f"{case.name} {theirs}")
        if mine is not None and f"grad.w.{theirs}" in case:
            close(mine, our_layout(theirs, case[f"grad.w.{theirs}"]), 1e-8, 1e-10, f"{case.name} {theirs}")
    assert not ours, f"parameters the published module lacks: {list(ours)}"


def test_temporal_block(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c06_sub_temporal*", "c10_sub_temporal*"):
        x = case["in.x"].requires_grad_()  # (T, B, C)
        width, width_in = case["w.affine_matrix.weight"].shape
        layers = sum(name.endswith("norm1.weight") and ".layers." in name for name in case.arrays if name[:2] == "w.")
        block = TemporalBlock(width_in, width, 4, len(case["w.encoder.layers.0.linear1.bias"]), layers)
        names = load_published(block, case, "Encoder.v_self_att.", "encoder.modality.video.temporal.")
        out = block(x.transpose(0, 1)).transpose(0, 1)
        check_module(case, [out], {"x": x}, block, names)
        if "out.dropout" in case:
            dropped = block(x.transpose(0, 1), drop=recorded_drop(case, layers, x.shape[1]))
            close(dropped.transpose(0, 1), case["out.dropout"], 1e-10, 1e-11, case.name)


def recorded_drop(case: Case, layers: int, batch: int) -> object:
    """Calls come per layer: attention weights (B, h, T, T), after attention, inside and after the MLP (B, T, .)."""
    masks = []
    for layer in range(layers):
        masks.append(case[f"in.mask{layer}_0"].unflatten(0, (batch, -1)))
        masks += [case[f"in.mask{layer}_{place}"].transpose(0, 1) for place in (1, 2, 3)]
    order = iter(masks)
    return lambda x: x * next(order).to(x.dtype) / 0.9


def position_major(x: Tensor) -> Tensor:
    return x.permute(2, 3, 0, 1, 4).flatten(2, 3).flatten(0, 1)


def map_form(x: Tensor, size: tuple[int, int], batch: tuple[int, int]) -> Tensor:
    return x.unflatten(0, size).unflatten(2, batch).permute(2, 3, 0, 1, 4)


def test_video_semantic_encoder(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c06_sub_video_semantic_*"):
        x = case["in.video"].requires_grad_()
        encoder = MapSemanticEncoder(x.shape[-1], "sum")
        names = load_published(encoder, case, "Encoder.v_gen_encoder.", "encoder.modality.video.semantic.")
        check_module(case, [encoder(position_major(x)).unflatten(0, x.shape[:2])], {"video": x}, encoder, names)


def test_video_specific_encoder(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c06_sub_video_specific_*"):
        x = case["in.video"].requires_grad_()
        encoder = MapSpecificEncoder(x.shape[2:4], x.shape[-1], case["out.0"].shape[-1])
        names = load_published(encoder, case, "Encoder.v_spe_encoder.", "encoder.modality.video.specific.")
        features, pooled = encoder(position_major(x))
        outputs = [map_form(features, encoder.size_out, x.shape[:2]), pooled.unflatten(0, x.shape[:2])]
        check_module(case, outputs, {"video": x}, encoder, names)


def test_video_decoder(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c06_sub_video_decoder_*"):
        enc, vq = case["in.enc"].requires_grad_(), case["in.vq"].requires_grad_()
        size, width = case["out.0"].shape[2:4], case["out.0"].shape[-1]
        encoder = MapSpecificEncoder(size, width, enc.shape[-1])
        decoder = MapDecoder(vq.shape[-1], encoder, enc.shape[-1], width)
        names = load_published(decoder, case, "Decoder.v_fine_decoder.", "decoder.fine.video.decode.")
        out = map_form(decoder(vq.flatten(0, 1), position_major(enc)), size, enc.shape[:2])
        check_module(case, [out], {"enc": enc, "vq": vq}, decoder, names)


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("audio", "Decoder.a_fine_decoder.", "decoder.fine.audio.decode."),
        ("simple", "Decoder.v_coarse_decoder.", "decoder.coarse.video."),
    ],
)
def test_vector_decoder(golden_dir: Path, kind: str, theirs: str, ours: str) -> None:
    for case in cases(golden_dir, f"c06_sub_{kind}_decoder_*"):
        enc, vq = case["in.enc"].requires_grad_(), case["in.vq"].requires_grad_()
        inner = len(case[f"w.{kind}_linear.bias"])
        decoder = VectorDecoder(vq.shape[-1], enc.shape[-1], case["out.0"].shape[-1], inner)
        names = load_published(decoder, case, theirs, ours)
        check_module(case, [decoder(vq, enc)], {"enc": enc, "vq": vq}, decoder, names)


def test_vector_specific_encoder(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c06_sub_simple_encoder_*"):
        x = case["in.x"].requires_grad_()
        encoder = VectorSpecificEncoder(x.shape[-1], case["out.0"].shape[-1])
        names = load_published(encoder, case, "Encoder.a_spe_encoder.", "encoder.modality.audio.specific.")
        check_module(case, [encoder(x)], {"x": x}, encoder, names)
