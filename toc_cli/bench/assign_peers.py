"""The nearest-code searches that people use today, each as a function of x (N, D) and codes (K, D) on one device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

Search = Callable[[], Tensor]
Peer = Callable[[Tensor, Tensor], Search]
TILE = 1 << 22  # scores that the tiled torch peers hold at a time


def torch_addmm(x: Tensor, codes: Tensor) -> Search:
    """|e|^2 - 2 x.e in tiles, then argmin."""
    square = codes.square().sum(1)

    def tile(rows: Tensor) -> Tensor:
        return torch.addmm(square, rows, codes.T, alpha=-2).argmin(1)

    return _tiled(x, codes, tile)


def torch_cdist(x: Tensor, codes: Tensor) -> Search:
    """torch.cdist in tiles, then argmin."""
    return _tiled(x, codes, lambda rows: torch.cdist(rows, codes).argmin(1))


def vector_quantize_pytorch(x: Tensor, codes: Tensor) -> Search:
    """VectorQuantize in eval mode, which also looks the codes up; rows in tiles, since it holds N x K."""
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(dim=codes.shape[1], codebook_size=len(codes)).to(codes.device).eval()
    layer.codebook = codes
    return _tiled(x, codes, lambda rows: layer(rows[None])[1][0])


def faiss_flat(x: Tensor, codes: Tensor) -> Search:
    """faiss.IndexFlatL2 with k = 1, as many threads as torch."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes.numpy())
    return lambda: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def scikit_learn(x: Tensor, codes: Tensor) -> Search:
    """sklearn.metrics.pairwise_distances_argmin."""
    from sklearn.metrics import pairwise_distances_argmin

    return lambda: torch.from_numpy(pairwise_distances_argmin(x.numpy(), codes.numpy()))


def scipy_vq(x: Tensor, codes: Tensor) -> Search:
    """scipy.cluster.vq.vq."""
    from scipy.cluster.vq import vq

    return lambda: torch.from_numpy(vq(x.numpy(), codes.numpy(), check_finite=False)[0]).long()


def flash_kmeans(x: Tensor, codes: Tensor) -> Search:
    """flash-kmeans' Triton assignment; in float16, what it is made for."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    rows, table = x.half()[None], codes.half()[None]
    square = rows.float().square().sum(-1)
    return lambda: euclid_assign_triton(rows, table, square)[0].long()


def cuvs_brute_force(x: Tensor, codes: Tensor) -> Search:
    """cuVS brute force with k = 1."""
    from cuvs.neighbors import brute_force

    index = brute_force.build(codes, metric="sqeuclidean")
    return lambda: torch.as_tensor(brute_force.search(index, x, 1)[1], device=x.device)[:, 0].long()


def keops(x: Tensor, codes: Tensor) -> Search:
    """KeOps' lazy argmin."""
    from pykeops.torch import LazyTensor

    rows, table = LazyTensor(x[:, None, :]), LazyTensor(codes[None, :, :])
    return lambda: ((rows - table) ** 2).sum(-1).argmin(dim=1)[:, 0]


CPU_PEERS: dict[str, tuple[str, Peer]] = {
    "torch addmm+argmin": ("torch", torch_addmm),
    "torch cdist+argmin": ("torch", torch_cdist),
    "vector-quantize-pytorch": ("vector_quantize_pytorch", vector_quantize_pytorch),
    "faiss": ("faiss", faiss_flat),
    "scikit-learn": ("sklearn", scikit_learn),
    "scipy": ("scipy", scipy_vq),
}
CUDA_PEERS: dict[str, tuple[str, Peer]] = {
    "torch addmm+argmin": ("torch", torch_addmm),
    "torch cdist+argmin": ("torch", torch_cdist),
    "vector-quantize-pytorch": ("vector_quantize_pytorch", vector_quantize_pytorch),
    "flash-kmeans (float16)": ("flash_kmeans", flash_kmeans),
    "cuVS": ("cuvs", cuvs_brute_force),
    "KeOps": ("pykeops", keops),
}


def installed(device: str) -> dict[str, Peer]:
    """The peers for a device type whose package is here."""
    table = CUDA_PEERS if device == "cuda" else CPU_PEERS
    return {name: peer for name, (package, peer) in table.items() if importlib.util.find_spec(package)}


def _tiled(x: Tensor, codes: Tensor, tile: Callable[[Tensor], Tensor]) -> Search:
    rows = max(1, TILE // len(codes)) if x.device.type == "cpu" else max(1, (1 << 28) // len(codes))
    return lambda: torch.cat([tile(part) for part in x.split(rows)])
