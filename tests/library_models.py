"""Tiny codecs of real libraries with codebooks as training leaves them, and the road from a folder to its pruned forms."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from toc_cli.io.checkpoint import Checkpoint, Edits, open_checkpoint
from toc_cli.io.families import detect, emit
from toc_cli.io.families.base import Codebook, Mode
from toc_cli.libraries import Run, run
from toc_cli.ops.quantiser import Quantiser, quantiser

CODES = 32
HIGGS = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
PROJECTIONS = ("quant_conv.weight", "input_proj.weight", "project_in.weight", "in_proj.weight")


# Models


def encodec(**changes: Any) -> torch.nn.Module:
    from transformers import EncodecConfig, EncodecModel

    config: dict[str, Any] = {
        "hidden_size": 24, "codebook_dim": 24, "num_filters": 4, "codebook_size": CODES, "num_lstm_layers": 1,
        "upsampling_ratios": [4, 2], "sampling_rate": 800, "target_bandwidths": [1.5], **changes,
    }  # fmt: skip
    return EncodecModel(EncodecConfig(**config))


def dac(**changes: Any) -> torch.nn.Module:
    from transformers import DacConfig, DacModel

    config: dict[str, Any] = {
        "encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 32, "n_codebooks": 3,
        "codebook_size": CODES, "codebook_dim": 8, "sampling_rate": 800, **changes,
    }  # fmt: skip
    return DacModel(DacConfig(**config))


def mimi(**changes: Any) -> torch.nn.Module:
    from transformers import MimiModel

    return MimiModel(mimi_config(**changes))


def mimi_config(**changes: Any) -> Any:
    from transformers import MimiConfig

    config: dict[str, Any] = {
        "hidden_size": 32, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "codebook_size": CODES,
        "num_filters": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 32, "num_quantizers": 4, "num_semantic_quantizers": 1, "sampling_rate": 1600,
        "upsampling_ratios": [4, 4], "frame_rate": 50, "upsample_groups": 32, **changes,
    }  # fmt: skip
    return MimiConfig(**config)


def _acoustic_and_semantic() -> dict[str, Any]:
    """The two encoders of X-Codec and Higgs, both with a hop of 320 samples: 50 frames of 5 bits a second, 2 levels."""
    from transformers import DacConfig, HubertConfig

    acoustic = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[8, 5, 4, 2], decoder_hidden_size=32, n_codebooks=2,
        codebook_size=32, codebook_dim=4, sampling_rate=16000,
    )  # fmt: skip
    acoustic.hidden_size = 16
    semantic = HubertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return {
        "acoustic_model_config": acoustic, "semantic_model_config": semantic, "codebook_size": CODES,
        "target_bandwidths": [0.25, 0.5], "sample_rate": 16000,
    }  # fmt: skip


def xcodec() -> torch.nn.Module:
    from transformers import XcodecConfig, XcodecModel

    return XcodecModel(XcodecConfig(**_acoustic_and_semantic()))


def higgs() -> torch.nn.Module:
    from transformers import HiggsAudioV2TokenizerConfig

    higgs_audio = import_without("torchaudio", HIGGS)  # which it needs to resample, and the rates here are equal
    return higgs_audio.HiggsAudioV2TokenizerModel(
        HiggsAudioV2TokenizerConfig(codebook_dim=12, **_acoustic_and_semantic())
    )


def import_without(absent: str, name: str) -> Any:
    """Import a module that imports `absent` at its top; where that is not installed, an empty module stands in for it."""
    if importlib.util.find_spec(absent) is not None:
        return importlib.import_module(name)
    sys.modules[absent] = types.ModuleType(absent)
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[absent]


def wav2vec2(library: str = "Wav2Vec2") -> torch.nn.Module:
    import transformers

    config = getattr(transformers, f"{library}Config")(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[16, 16, 16],
        conv_kernel=[10, 8, 4], conv_stride=[5, 4, 4], num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        codevector_dim=24, proj_codevector_dim=20, num_codevectors_per_group=40, num_codevector_groups=2,
        num_negatives=5,
    )  # fmt: skip
    return getattr(transformers, f"{library}ForPreTraining")(config)


def chameleon() -> torch.nn.Module:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    return ChameleonVQVAE(ChameleonVQVAEConfig(embed_dim=16, num_embeddings=CODES, latent_channels=20, **_unet()))


def janus() -> torch.nn.Module:
    from transformers import JanusVQVAE, JanusVQVAEConfig

    return JanusVQVAE(JanusVQVAEConfig(embed_dim=8, num_embeddings=CODES, latent_channels=20, num_patches=8, **_unet()))


def glm_image() -> torch.nn.Module:
    from transformers.models.glm_image import configuration_glm_image, modeling_glm_image

    config = configuration_glm_image.GlmImageVQVAEConfig(embed_dim=16, num_embeddings=CODES, latent_channels=20)
    return modeling_glm_image.GlmImageVQVAE(config)


def emu3() -> torch.nn.Module:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    config = Emu3VQVAEConfig(
        embed_dim=8, latent_channels=8, codebook_size=CODES, attn_resolutions=[], hidden_size=32, **_unet()
    )
    return Emu3VQVAE(config)


def _unet() -> dict[str, Any]:
    return {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}


def vqmodel(**changes: Any) -> torch.nn.Module:
    from diffusers import VQModel

    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (32, 32), "norm_num_groups": 8, "latent_channels": 8, "num_vq_embeddings": CODES,
        "vq_embed_dim": 12, **changes,
    }  # fmt: skip
    return VQModel(**config)


def paella() -> torch.nn.Module:
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    return PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=16, latent_channels=6, num_vq_embeddings=CODES)


def save(model: torch.nn.Module, folder: Path, seed: int = 0) -> Path:
    """Save a model whose weights and codebooks are all alive: random ones with EMA sums that fit them."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        leaf = name.rpartition(".")[2]
        if leaf in ("cluster_size", "cluster_usage"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 5 + 0.5)
        elif name.endswith(("codebook.embed", "codebook.weight", "embedding.weight", "codevectors", "embed_sum")):
            level = int(next((part for part in reversed(name.split(".")) if part.isdecimal()), "0"))
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.6 * 0.7**level)
        elif name.endswith(PROJECTIONS):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[1] ** 0.5)
        elif tensor.is_floating_point() and leaf in ("bias", "running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    for name, tensor in state.items():
        if name.endswith("embed_avg"):
            tensor.copy_(
                state[name.removesuffix("_avg")] * state[f"{name.removesuffix('embed_avg')}cluster_size"][:, None]
            )
        if name.endswith("embed_sum"):
            tensor.mul_(state[f"{name.removesuffix('embed_sum')}cluster_usage"][:, None])
    model.eval().save_pretrained(folder)
    return folder


def save_folder(folder: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    """A Hugging Face folder of given tensors and config."""
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return folder


# From a folder to its pruned forms


def read_quantiser(ckpt: Checkpoint, codebook: Codebook) -> Quantiser:
    """The quantiser of a codebook in a file."""
    parts = codebook.parts(ckpt)
    return quantiser(
        parts.tables,
        metric=codebook.metric,
        residual=codebook.residual,
        unit_vectors=codebook.unit_vectors,
        stored_unit=codebook.stored_unit,
        project_in=parts.project_in,
        norm_in=parts.norm_in,
        level_in=parts.level_in,
        level_out=parts.level_out,
        logits=parts.logits,
    )


def choose(codebook: Codebook, size: int, seed: int = 0) -> torch.Tensor:
    """Random kept dimensions (L|1, H, size): own sets wherever the family allows them."""
    generator = torch.Generator().manual_seed(seed)
    levels = codebook.levels if codebook.own_dims_per_level else 1
    sets = [
        [torch.randperm(codebook.dim, generator=generator)[:size].sort().values for _ in range(codebook.heads)]
        for _ in range(levels)
    ]
    return torch.stack([torch.stack(heads) for heads in sets])


def constant(codebook: Codebook, full: Quantiser, rows: torch.Tensor) -> torch.Tensor:
    """The constant of dropped dimensions: the usage-weighted mean, or zero where the family needs that."""
    fill = torch.zeros(codebook.levels, codebook.heads, codebook.dim, dtype=torch.float64)
    if codebook.zero_fill:
        return fill
    tokens = full.tokens(rows)
    usage = [
        torch.stack([torch.bincount(tokens[:, at, head], minlength=codes) for head in range(codebook.heads)])
        for at, codes in enumerate(codebook.num_codes)
    ]
    return torch.from_numpy(full.mean_fill([counts.double().numpy() for counts in usage]))


def write(
    source: Path,
    find: Callable[[Checkpoint], list[Codebook]],
    mode: Mode,
    kept: list[torch.Tensor],
    fill: list[torch.Tensor],
    target: Path,
    rotation: list[torch.Tensor] | None = None,
) -> Path:
    """Write one pruned form of a file or folder, all of its codebooks cut, or turned into fewer components."""
    ckpt = open_checkpoint(source)
    edits = Edits()
    turns = rotation or [None] * len(kept)
    for codebook, indices, values, turn in zip(find(ckpt), kept, fill, turns, strict=True):
        edits = emit.edits(ckpt, codebook, mode, kept=indices, fill=values, rotation=turn, on=edits)
    ckpt.write(target, edits)
    return target


@dataclass
class Prepared:
    """A folder, its codebooks, and one choice of dimensions for each of them."""

    folder: Path
    books: list[Codebook]
    kept: list[torch.Tensor]
    fill: list[torch.Tensor]
    rows: list[torch.Tensor]
    full: list[Quantiser]

    @property
    def pruned(self) -> list[Quantiser]:
        """The subspace form of each quantiser."""
        return [whole.pruned(kept, fill) for whole, kept, fill in zip(self.full, self.kept, self.fill, strict=True)]

    def write(self, mode: Mode, target: Path) -> Path:
        """One pruned form of the folder."""
        return write(self.folder, detect, mode, self.kept, self.fill, target)

    def runs(self, folder: Path) -> list[Run]:
        """The library's view of a folder, codebook by codebook; a codebook without projection gets the kept columns."""
        found = []
        for book, rows, kept in zip(detect(open_checkpoint(folder)), self.rows, self.kept, strict=True):
            fits = rows.shape[1] in (book.dim, book.outer_width)
            found.append(run(folder, book, rows if fits else rows[:, kept[0, 0]]))
        return found


def prepare(folder: Path, size: int | float, count: int = 500, sample: torch.Tensor | None = None) -> Prepared:
    """Random dimensions for every codebook of a folder; rows are `sample` where its width fits, else random."""
    ckpt = open_checkpoint(folder)
    found = Prepared(folder, detect(ckpt), [], [], [], [])
    for n, book in enumerate(found.books):
        full = read_quantiser(ckpt, book)
        rows = torch.randn(count, full.width, generator=torch.Generator().manual_seed(n))
        rows = sample if sample is not None and sample.shape[1] == full.width else rows
        found.full.append(full)
        found.rows.append(rows)
        found.kept.append(choose(book, size if isinstance(size, int) else max(1, round(size * book.dim)), seed=n))
        found.fill.append(constant(book, full, rows))
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """The config of a folder."""
    return json.loads((folder / "config.json").read_text())


def flips(full: Quantiser, rows: torch.Tensor, expected: torch.Tensor, found: torch.Tensor) -> int:
    """Rows whose tokens (N, L, H) differ where float32 could tell the two codes apart.

    Libraries compute |x|^2 - 2 x e + |e|^2 in float32: a lead below 1e-6 of those terms is decided by rounding.
    """
    differing = 0
    for at in (expected != found).flatten(1).any(1).nonzero().flatten():
        row, level, head = rows[at : at + 1], *(int(n) for n in (expected[at] != found[at]).nonzero()[0])
        z = list(full.inputs(row, expected[at : at + 1]))[level][0].double()
        columns, kept = full.levels[level].compared(z[None], head), full.levels[level].columns(head)
        x = columns[0] if kept is None else columns[0, kept]
        codes = full.levels[level].codes[head].double()
        if full.metric == "cosine":
            x, codes = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(codes, dim=-1)
        pair = codes[[int(expected[at, level, head]), int(found[at, level, head])]]
        gap = (pair - x).square().sum(-1).diff().abs()
        differing += int(gap > 1e-6 * (z.square().sum() + pair.square().sum(-1).max()))
    return differing
