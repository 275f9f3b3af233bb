"""Published layouts with random numbers: their tensors, and their own forward formula as a slow reference from features to tokens.

Each formula reads the tensors of the file alone, so it runs on a masked copy as it does on the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Tensors = Mapping[str, torch.Tensor]
K, D, W = 24, 8, 12


@dataclass(frozen=True)
class Published:
    """One layout: shapes by full key, width of the features, and the formula (tensors, x (N, width)) -> tokens (N, L * H)."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    width: int
    formula: Callable[[Tensors, np.ndarray], np.ndarray]
    family: str
    config: dict[str, Any] | None = None
    unit: tuple[str, ...] = ()
    """Tables whose rows the model keeps at unit length."""
    values: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `detect`."""
    container: str = "torch"

    def tensors(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random tensors: positive counts, tables wide enough apart, magnitudes above zero."""
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for key, shape in self.shapes.items():
            leaf = key.rpartition(".")[2]
            counts = leaf in (
                "cluster_size",
                "code_count",
                "N",
                "_ema_cluster_size",
                "ema_cluster_size",
                "weight_g",
                "vocab_usage",
            )
            values = torch.rand(shape, generator=generator) + 0.5 if counts else torch.randn(shape, generator=generator)
            made[key] = torch.nn.functional.normalize(values, dim=-1) if key in self.unit else values
        return made


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def euclidean(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """argmin_k |x - e_k|^2, one difference at a time."""
    return np.array([np.argmin([((row - code) ** 2).sum() for code in table]) for row in x])


def cosine(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    lengths = np.sqrt((table * table).sum(-1))
    lengths[lengths == 0] = 1
    return np.array(
        [np.argmax([(row * code).sum() / length for code, length in zip(table, lengths, strict=True)]) for row in x]
    )


def a(tensors: Tensors, key: str) -> np.ndarray:
    return tensors[key].double().numpy()


def plain(key: str, transposed: bool = False, before: str | None = None) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """Euclidean lookup in one table, behind a pointwise layer where one is named."""

    def formula(t: Tensors, x: np.ndarray) -> np.ndarray:
        if before:
            x = layer(t, before, x)
        table = a(t, key)
        return euclidean(x, table.T if transposed else table)[:, None]

    return formula


def layer(t: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    """A linear layer or pointwise convolution, weight norm in any of its spellings."""
    if f"{name}.weight" in t:
        weight = a(t, f"{name}.weight")
    else:
        v, g = (
            (a(t, f"{name}.weight_v"), a(t, f"{name}.weight_g"))
            if f"{name}.weight_v" in t
            else (a(t, f"{name}.parametrizations.weight.original1"), a(t, f"{name}.parametrizations.weight.original0"))
        )
        weight = g * v / np.sqrt((v.reshape(len(v), -1) ** 2).sum(1)).reshape(g.shape)
    bias = a(t, f"{name}.bias") if f"{name}.bias" in t else 0
    return x @ weight.reshape(weight.shape[0], -1).T + bias


def residual(*keys: str, transposed: bool = False) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """Levels of one residual in the space of the codes."""

    def formula(t: Tensors, x: np.ndarray) -> np.ndarray:
        found = []
        for key in keys:
            table = a(t, key).T if transposed else a(t, key)
            found.append(euclidean(x, table))
            x = x - table[found[-1]]
        return np.stack(found, 1)

    return formula


def product_table(table: str, name: str, before: str | None = None) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """SimVQ: the codes are a linear layer of a frozen table."""
    return lambda t, x: euclidean(layer(t, before, x) if before else x, layer(t, name, a(t, table)))[:, None]


def product_levels(count: int, layer_name: str) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """RQ-VAE with sim_vq: every level's codes are a linear layer of its table."""

    def formula(t: Tensors, x: np.ndarray) -> np.ndarray:
        found = []
        for n in range(count):
            codes = layer(t, f"model/layers.{n}.{layer_name}", a(t, f"model/layers.{n}.embedding.weight"))
            found.append(euclidean(x, codes))
            x = x - codes[found[-1]]
        return np.stack(found, 1)

    return formula


def norm_ema(key: str) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """BEiT v2: |z|^2 + |e|^2 - 2 z e of the normalised z, rows as stored."""
    return lambda t, x: euclidean(unit(x), a(t, key))[:, None]


def factorized(
    stems: list[str], table: str, into: str, out: str, lookup: Any = cosine
) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """DAC and its kin: each level projects the residual in, looks up, and projects the raw row out."""

    def formula(t: Tensors, x: np.ndarray) -> np.ndarray:
        found = []
        for stem in stems:
            codes = a(t, stem + table)
            found.append(lookup(layer(t, stem + into, x), codes))
            x = x - layer(t, stem + out, codes[found[-1]])
        return np.stack(found, 1)

    return formula


def heads(keys: list[str]) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """UniTok: the features are cut into heads, each looked up by cosine."""
    return lambda t, x: np.stack(
        [cosine(part, a(t, key)) for part, key in zip(np.split(x, len(keys), 1), keys, strict=True)], 1
    )


def vq_wav2vec(key: str) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """fairseq's k-means quantiser: (V, G, D) codes, or (V, 1, D) that serve both groups of the features past projection and norm."""

    def formula(t: Tensors, x: np.ndarray) -> np.ndarray:
        table = np.broadcast_to(a(t, key), (K, 2, D))
        return np.stack([euclidean(part, table[:, g]) for g, part in enumerate(np.split(x, 2, 1))], 1)

    return formula


def gumbel(chooser: str) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """fairseq's Gumbel quantiser at test time: the largest logit of each group."""
    return lambda t, x: layer(t, chooser, x).reshape(len(x), 2, -1).argmax(2)


def group_residual(names: list[list[str]]) -> Callable[[Tensors, np.ndarray], np.ndarray]:
    """NeMo: each group of the features has a residual of its own; names[group][level]."""

    def formula(t: Tensors, x: np.ndarray) -> np.ndarray:
        found = [residual(*keys)(t, part) for keys, part in zip(names, np.split(x, len(names), 1), strict=True)]
        return np.stack(found, 2).reshape(len(x), -1)

    return formula


def linear(name: str, out: int, width: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width, *kernel), f"{name}.bias": (out,)}


def normed(name: str, out: int, width: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    ones = (1,) * (1 + len(kernel))
    return {f"{name}.weight_v": (out, width, *kernel), f"{name}.weight_g": (out, *ones), f"{name}.bias": (out,)}


def parametrized(name: str, out: int, width: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    ones = (1,) * (1 + len(kernel))
    stem = f"{name}.parametrizations.weight.original"
    return {f"{stem}1": (out, width, *kernel), f"{stem}0": (out, *ones), f"{name}.bias": (out,)}


def ema(stem: str, table: str, sums: str, counts: str, transposed: bool = False) -> dict[str, tuple[int, ...]]:
    shape = (D, K) if transposed else (K, D)
    return {stem + table: shape, stem + sums: shape, stem + counts: (K,)}


def numbered(pattern: str, count: int, make: Callable[[str], dict[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    return {key: shape for n in range(count) for key, shape in make(pattern.format(n)).items()}


LEVELS = range(3)
PUBLISHED = (
    Published(
        "BEiT v2",
        {
            "model/quantize.embedding.weight": (K, D), "model/quantize.embedding.cluster_size": (K,),
            "model/quantize.embedding.embed_avg": (K, D), "model/quantize.embedding.initted": (1,),
            "model/quantize.cluster_size": (K,), **linear("model/encode_task_layer.2", D, W),
            **linear("model/decoder.patch_embed.proj", 6, D, 1, 1),
        },
        D, norm_ema("model/quantize.embedding.weight"), "NormEMA (BEiT v2, BEATs, LaBraM)",
        unit=("model/quantize.embedding.weight",),
    ),
    Published(
        "S3 tokenizer v1",
        {"quantizer._codebook.embed": (K, D), **linear("encoder.conv1", 6, 5, 3)},
        D, norm_ema("quantizer._codebook.embed"), "S3 tokenizer v1",
    ),
    Published(
        "SimVQ",
        {"state_dict/quantize.embedding.weight": (K, W), **linear("state_dict/quantize.embedding_proj", D, W)},
        D, product_table("state_dict/quantize.embedding.weight", "state_dict/quantize.embedding_proj"), "SimVQ",
    ),
    Published(
        "VQGAN-LC",
        {
            "tok_embeddings.weight": (K, 10), **linear("codebook_projection", D, 10),
            **linear("quant_conv", D, W, 1, 1), **linear("post_quant_conv", 6, D, 1, 1),
        },
        W, product_table("tok_embeddings.weight", "codebook_projection", "quant_conv"), "VQGAN-LC",
    ),
    Published(
        "RQ-VAE recommender",
        {
            **numbered("model/layers.{}.embedding.weight", 3, lambda key: {key: (K, D)}),
            **linear("model/encoder.mlp.0", D, W), **linear("model/decoder.mlp.0", W, D),
        },
        D, residual(*(f"model/layers.{n}.embedding.weight" for n in LEVELS)), "RQ-VAE recommender",
    ),
    *(
        Published(
            f"RQ-VAE recommender, SimVQ {name} {'with a bias' if biased else ''}",
            {
                key: shape
                for key, shape in {
                    **numbered("model/layers.{}.", 3, lambda stem, name=name: {
                        f"{stem}embedding.weight": (K, D), **linear(f"{stem}{name}", D, D),
                    }),
                    **linear("model/encoder.mlp.0", D, W), **linear("model/decoder.mlp.0", W, D),
                }.items()
                if biased or ".mlp." in key or not key.endswith("bias")
            },
            D, product_levels(3, name), "RQ-VAE recommender",
        )
        for name, biased in (("out_proj.0", False), ("out_proj", True), ("embedding_proj", True))
    ),
    Published(
        "OneRec", {f"centroids.{n}": (K, D) for n in LEVELS}, D, residual(*(f"centroids.{n}" for n in LEVELS)),
        "OneRec residual k-means", options={"assume": True},
    ),
    Published(
        "GRID",
        {
            **{f"state_dict/quantization_layer_list.{n}.centroids": (K, D) for n in LEVELS},
            **linear("state_dict/encoder.network.0", D, W),
        },
        D, residual(*(f"state_dict/quantization_layer_list.{n}.centroids" for n in LEVELS)), "GRID residual k-means",
        values={"hyper_parameters/normalize_residuals": False},
    ),
    Published(
        "TiTok",
        {
            "quantize.embedding.weight": (K, D), "latent_tokens": (4, 6), **linear("encoder.conv_out", D, W, 1, 1),
            **linear("decoder.decoder_embed", 6, D),
        },
        W, lambda t, x: cosine(layer(t, "encoder.conv_out", x), a(t, "quantize.embedding.weight"))[:, None], "TiTok",
        config={"model": {"vq_model": {"use_l2_norm": True, "token_size": D, "codebook_size": K}}},
    ),
    Published(
        "UniTok",
        {
            **numbered("quantizer.codebooks.{}.", 4, lambda stem: {f"{stem}codebook.weight": (K, D), f"{stem}vocab_usage": (K,)}),
            **linear("post_quant_proj", 6, 4 * D),
        },
        4 * D, heads([f"quantizer.codebooks.{n}.codebook.weight" for n in range(4)]), "UniTok",
    ),
    Published(
        "MoMask",
        {
            **numbered("vq_model/quantizer.layers.{}.", 3, lambda stem: ema(stem, "codebook", "code_sum", "code_count")),
            **linear("vq_model/encoder.model.4", D, W, 3), **linear("vq_model/decoder.model.0", W, D, 3),
        },
        D, residual(*(f"vq_model/quantizer.layers.{n}.codebook" for n in LEVELS)), "MoMask residual VQ",
    ),
    Published(
        "T2M-GPT",
        {
            **ema("net/vqvae.quantizer.", "codebook", "code_sum", "code_count"),
            **linear("net/vqvae.decoder.model.0", W, D, 3),
        },
        D, plain("net/vqvae.quantizer.codebook"), "T2M-GPT VQ",
    ),
    Published(
        "zalando",
        {
            **ema("_vq_vae.", "_embedding.weight", "_ema_w", "_ema_cluster_size"), **linear("_pre_vq_conv", D, W, 1, 1),
            **linear("_decoder._conv_1", 6, D, 3, 3),
        },
        W, plain("_vq_vae._embedding.weight", before="_pre_vq_conv"), "zalando VQ-VAE",
    ),
    Published(
        "MishaLaskin",
        {
            "model/vector_quantization.embedding.weight": (K, D), **linear("model/pre_quantization_conv", D, W, 1, 1),
            "model/decoder.inverse_conv_stack.0.weight": (D, 6, 3, 3), "model/decoder.inverse_conv_stack.0.bias": (6,),
        },
        W, plain("model/vector_quantization.embedding.weight", before="model/pre_quantization_conv"), "MishaLaskin VQ-VAE",
    ),
    Published(
        "nadavbh12", ema("emb.", "weight", "embed_avg", "cluster_size", transposed=True), D, plain("emb.weight", True),
        "nadavbh12 VQ-VAE",
    ),
    Published(
        "EMA positions", ema("", "weight", "ema_positions", "ema_cluster_size"), D, plain("weight"),
        "nearest embedding with EMA positions",
    ),
    Published(
        "VideoGPT",
        {
            **ema("state_dict/codebook.", "embeddings", "z_avg", "N"),
            **linear("state_dict/pre_vq_conv.conv", D, W, 1, 1, 1), **linear("state_dict/post_vq_conv.conv", W, D, 1, 1, 1),
        },
        W, plain("state_dict/codebook.embeddings", before="state_dict/pre_vq_conv.conv"), "VideoGPT VQ-VAE",
    ),
    Published(
        "ViT-VQGAN",
        {
            "state_dict/quantizer.embedding.weight": (K, D), **linear("state_dict/pre_quant", D, W),
            **linear("state_dict/post_quant", W, D),
        },
        W,
        lambda t, x: cosine(layer(t, "state_dict/pre_quant", x), a(t, "state_dict/quantizer.embedding.weight"))[:, None],
        "ViT-VQGAN",
    ),
    Published(
        "Amphion FVQ",
        {
            key: shape
            for n in LEVELS
            for stem in [f"quantizer.quantizers.{n}."]
            for key, shape in {
                f"{stem}codebook.weight": (K, D), **normed(f"{stem}in_project", D, W), **normed(f"{stem}out_project", W, D)
            }.items()
        },
        W, factorized([f"quantizer.quantizers.{n}." for n in LEVELS], "codebook.weight", "in_project", "out_project"),
        "Amphion factorized VQ", options={"assume": True},
    ),
    Published("ESM3", ema("codebook.", "embeddings", "z_avg", "N"), D, plain("codebook.embeddings"), "ESM3 EMA codebook"),
    Published(
        "RepCodec",
        numbered(
            "model/repcodec/quantizer.codebook.layers.{}.", 2, lambda stem: ema(stem, "embed", "embed_avg", "cluster_size", True)
        ),
        D, residual(*(f"model/repcodec/quantizer.codebook.layers.{n}.embed" for n in range(2)), transposed=True),
        "RepCodec (AudioDec)",
    ),
    Published(
        "XY-Tokenizer",
        {
            **numbered(
                "quantizer.quantizers.{}.", 3,
                lambda stem: {**ema(stem, "codebook", "embed_avg", "cluster_size"), f"{stem}inited": (1,)},
            ),
            **parametrized("quantizer.input_proj", D, W, 1), **parametrized("quantizer.output_proj", W, D, 1),
        },
        W,
        lambda t, x: residual(*(f"quantizer.quantizers.{n}.codebook" for n in LEVELS))(t, layer(t, "quantizer.input_proj", x)),
        "XY-Tokenizer",
    ),
    Published(
        "NeMo groups",
        {
            key: shape
            for g in range(2)
            for n in range(3)
            for key, shape in ema(f"vector_quantizer.rvqs.{g}.codebooks.{n}.", "codes", "codes_avg", "cluster_size").items()
        },
        2 * D, group_residual([[f"vector_quantizer.rvqs.{g}.codebooks.{n}.codes" for n in LEVELS] for g in range(2)]),
        "NeMo residual VQ",
    ),
    Published(
        "Haiku",
        {"v/vector_quantizer_ema/embeddings": (D, K), "v/vector_quantizer_ema/ema_cluster_size/hidden": (K,),
         "v/vector_quantizer_ema/ema_cluster_size/average": (K,), "v/vector_quantizer_ema/ema_dw/hidden": (D, K),
         "v/vector_quantizer_ema/ema_dw/average": (D, K)},
        D, plain("v/vector_quantizer_ema/embeddings", True), "Haiku VQ-VAE", container="h5",
    ),
    *(
        Published(
            f"Sonnet {shape}",
            {f"{stem}{table}": shape, f"{stem}ema_cluster_size": (K,), f"{stem}ema_dw": shape},
            D, plain(f"{stem}{table}", shape == (D, K)), "Sonnet VQ-VAE", container=container,
        )
        for stem, table, shape, container in (
            ("v/vector_quantizer_ema/", "embeddings", (D, K), "h5"),
            ("state_dict/model.vector_quantizer.", "embeddings", (D, K), "torch"),
            ("state_dict/vq.", "embedding", (K, D), "torch"),
        )
    ),
    *(
        Published(
            f"LARP, {'at unit length' if cosines else 'plain'}",
            {
                "sd/bottleneck.regularizer.embedding.weight": (K, D), **linear("sd/bottleneck.in_linear", D, W),
                **linear("sd/bottleneck.out_linear", 6, D),
            },
            W,
            lambda t, x, lookup=cosine if cosines else euclidean: lookup(
                layer(t, "sd/bottleneck.in_linear", x), a(t, "sd/bottleneck.regularizer.embedding.weight")
            )[:, None],
            "LARP", config={"bottleneck": {"args": {"regularizer": {"args": {"l2_normalized": cosines}}}}},
        )
        for cosines in (True, False)
    ),
    *(
        Published(
            f"vq-wav2vec, {'tied' if stored == 1 else 'own'} groups",
            {
                "model/vector_quantizer.embedding": (K, stored, D), "model/vector_quantizer.projection.0.weight": (2 * D, D, 1),
                "model/vector_quantizer.projection.1.weight": (2 * D,), "model/vector_quantizer.projection.1.bias": (2 * D,),
            },
            2 * D, vq_wav2vec("model/vector_quantizer.embedding"), "fairseq vq-wav2vec",
        )
        for stored in (1, 2)
    ),
    *(
        Published(
            f"wav2vec 2.0 of fairseq, {'tied' if tables == 1 else 'own'} groups",
            {
                "model/quantizer.vars": (1, tables * K, D), **linear("model/quantizer.weight_proj", 2 * K, W),
                **linear("model/project_q", 6, 2 * D),
            },
            W, gumbel("model/quantizer.weight_proj"), "fairseq wav2vec 2.0",
        )
        for tables in (1, 2)
    ),
    Published(
        "Keras",
        {"vector_quantizer/embeddings_vqvae:0": (D, K)},
        D, plain("vector_quantizer/embeddings_vqvae:0", True), "Keras VQ-VAE", container="h5",
    ),
    Published(
        "BigCodec",
        numbered(
            "generator/quantizer.layers.{}.", 2,
            lambda stem: {f"{stem}_codebook.weight": (K, D), **normed(f"{stem}in_proj", D, W), **normed(f"{stem}out_proj", W, D)},
        ),
        W, factorized([f"generator/quantizer.layers.{n}." for n in range(2)], "_codebook.weight", "in_proj", "out_proj"),
        "factorized VQ (BigCodec, FACodec)",
    ),
    *(
        Published(
            f"BiCodec {make.__name__} {len(kernel)}",
            {"quantizer.codebook.weight": (K, D), "quantizer.cluster_size": (K,), **make("quantizer.in_project", D, W, *kernel),
             **make("quantizer.out_project", W, D, *kernel)},
            W, factorized(["quantizer."], "codebook.weight", "in_project", "out_project"), "BiCodec",
        )
        for make in (normed, parametrized, linear)
        for kernel in ((), (1,))
    ),
    Published(
        "Qwen3-TTS 25 Hz",
        numbered(
            "encoder.audio_quantizer.rvqs.0.layers.{}.", 2,
            lambda stem: {
                **ema(f"{stem}_codebook.", "embed", "embed_avg", "cluster_size"), f"{stem}_codebook.inited": (1,),
                **linear(f"{stem}project_in", D, W), **linear(f"{stem}project_out", W, D),
            },
        ),
        W,
        factorized(
            [f"encoder.audio_quantizer.rvqs.0.layers.{n}." for n in range(2)], "_codebook.embed", "project_in", "project_out", euclidean
        ),
        "encodec with projections (Qwen3-TTS 25 Hz)",
    ),
    Published(
        "WavTokenizer",
        {
            **ema("state_dict/feature_extractor.encodec.quantizer.vq.layers.0._codebook.", "embed", "embed_avg", "cluster_size"),
            **normed("state_dict/feature_extractor.encodec.encoder.model.15.conv.conv", D, W, 1),
            **normed("state_dict/feature_extractor.encodec.decoder.model.0.conv.conv", W, D, 1),
            **linear("state_dict/backbone.embed", 6, D, 7),
        },
        D, plain("state_dict/feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"), "wavtokenizer",
    ),
    *(
        Published(
            f"numbered, {how}", {f"{n}": (K, D) for n in LEVELS}, D if how == "residual" else 3 * D,
            residual("0", "1", "2") if how == "residual"
            else lambda t, x: np.stack([euclidean(x[:, n * D : (n + 1) * D], a(t, str(n))) for n in LEVELS], 1),
            "unknown", options={"stack": how, "assume": True},
        )
        for how in ("residual", "product")
    ),
)  # fmt: skip
