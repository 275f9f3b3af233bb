"""The list of what is read, as README has it: every family once, under what shows in the tests that it is read right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toc_cli.io.containers import CONTAINERS

Shown = Literal["by the library itself", "by its formula", "by structure"]


@dataclass(frozen=True)
class Listed:
    """Families of one name in the list."""

    name: str
    shown: Shown
    families: tuple[str, ...]
    """What `Codebook.family` calls them."""


LIBRARY: Shown = "by the library itself"
FORMULA: Shown = "by its formula"
STRUCTURE: Shown = "by structure"
LISTED: tuple[Listed, ...] = (
    Listed("vector-quantize-pytorch", LIBRARY, ("vector-quantize-pytorch", "vector-quantize-pytorch SimVQ")),
    Listed("EnCodec", LIBRARY, ("encodec",)),
    Listed("DAC", LIBRARY, ("dac",)),
    Listed("Mimi", LIBRARY, ("mimi",)),
    Listed("X-Codec", LIBRARY, ("xcodec",)),
    Listed("Higgs audio v2", LIBRARY, ("higgs audio v2",)),
    Listed("wav2vec 2.0", LIBRARY, ("wav2vec2",)),
    Listed("Chameleon", LIBRARY, ("chameleon vq",)),
    Listed("Janus", LIBRARY, ("janus vq",)),
    Listed("GLM-Image", LIBRARY, ("glm-image vq",)),
    Listed("Emu3", LIBRARY, ("emu3 vq",)),
    Listed("diffusers VQModel, MoVQ and Paella", LIBRARY, ("diffusers vqmodel", "diffusers paella")),
    Listed(
        "faiss PQ, RQ, IVF and Flat", LIBRARY,
        ("faiss product quantiser", "faiss residual quantiser", "faiss coarse quantiser", "faiss flat index"),
    ),
    Listed("scikit-learn k-means", LIBRARY, ("k-means (scikit-learn)", "k-means")),
    Listed("FCID of toc", LIBRARY, ("toc FCID",)),
    Listed("BEiT v2, BEATs, LaBraM", FORMULA, ("NormEMA (BEiT v2, BEATs, LaBraM)",)),
    Listed("S3 tokenizer v1", FORMULA, ("S3 tokenizer v1",)),
    Listed("SimVQ", FORMULA, ("SimVQ",)),
    Listed("VQGAN-LC", FORMULA, ("VQGAN-LC",)),
    Listed("TiTok", FORMULA, ("TiTok",)),
    Listed("UniTok", FORMULA, ("UniTok",)),
    Listed("WavTokenizer", FORMULA, ("wavtokenizer",)),
    Listed("BigCodec, FACodec", FORMULA, ("factorized VQ (BigCodec, FACodec)",)),
    Listed("BiCodec", FORMULA, ("BiCodec",)),
    Listed("Qwen3-TTS 25 Hz", FORMULA, ("encodec with projections (Qwen3-TTS 25 Hz)",)),
    Listed("RepCodec", FORMULA, ("RepCodec (AudioDec)",)),
    Listed("XY-Tokenizer", FORMULA, ("XY-Tokenizer",)),
    Listed("NeMo", FORMULA, ("NeMo residual VQ",)),
    Listed("MoMask, T2M-GPT", FORMULA, ("MoMask residual VQ", "T2M-GPT VQ")),
    Listed("RQ-VAE recommenders", FORMULA, ("RQ-VAE recommender",)),
    Listed("OneRec and GRID residual k-means", FORMULA, ("OneRec residual k-means", "GRID residual k-means")),
    Listed("ESM3, VideoGPT", FORMULA, ("ESM3 EMA codebook", "VideoGPT VQ-VAE")),
    Listed("ViT-VQGAN", FORMULA, ("ViT-VQGAN",)),
    Listed("Amphion FVQ", FORMULA, ("Amphion factorized VQ",)),
    Listed("LARP", FORMULA, ("LARP",)),
    Listed("Haiku, Sonnet and Keras VQ-VAE", FORMULA, ("Haiku VQ-VAE", "Sonnet VQ-VAE", "Keras VQ-VAE")),
    Listed(
        "tutorial VQ-VAEs", FORMULA,
        ("zalando VQ-VAE", "MishaLaskin VQ-VAE", "nadavbh12 VQ-VAE", "nearest embedding with EMA positions"),
    ),
    Listed("taming VQGAN", STRUCTURE, ("taming-transformers VQGAN", "taming-transformers GumbelVQ", "VQGAN layout")),
    Listed("LlamaGen", STRUCTURE, ("LlamaGen VQ",)),
    Listed("VAR", STRUCTURE, ("VAR multi-scale VQ-VAE",)),
    Listed("RQ-VAE, LC-Rec", STRUCTURE, ("Kakao RQ-VAE", "LC-Rec RQ-VAE")),
    Listed("VQ-VAE-2", STRUCTURE, ("rosinality VQ-VAE-2",)),
    Listed("ReVQ", STRUCTURE, ("ReVQ",)),
    Listed("Jukebox", STRUCTURE, ("Jukebox VQ-VAE",)),
    Listed("SpeechTokenizer, AudioCraft", STRUCTURE, ("speechtokenizer", "audiocraft", "encodec (original)", "mimi (original)")),
    Listed("fairseq wav2vec 2.0 and vq-wav2vec", FORMULA, ("fairseq wav2vec 2.0", "fairseq vq-wav2vec")),
    Listed("CMG", STRUCTURE, ("CMG",)),
)  # fmt: skip


def markdown() -> str:
    """The containers, and the families by what shows that they are read right, a paragraph of few lines."""
    names = [row.name for row in CONTAINERS if row.checkpoint and row.suffixes]
    lines = [f"Containers: {', '.join(dict.fromkeys(names))}.", "", "Families, shown in the tests", ""]
    for shown in (LIBRARY, FORMULA, STRUCTURE):
        lines.append(f"- *{shown}*: {', '.join(one.name for one in LISTED if one.shown == shown)}.")
    return "\n".join(lines)
