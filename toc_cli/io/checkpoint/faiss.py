"""faiss indexes, read without faiss: product and residual quantisers, flat vectors, and the wrappers around them.

Format (faiss/impl/index_write.cpp): a fourcc, then d i32, ntotal i64, two i64 of filler, trained u8, metric i32 (above 1
also an f32). Vectors are a u64 length and their items; a product quantiser is d, M, nbits u64 and its centroids.
Legend: M sub-spaces, ksub = 2^nbits codes each, dsub = d / M.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

METRICS = {0: "inner_product", 1: "l2"}
PRODUCT_LISTS = {"IwPQ": 8, "IvPQ": 8, "IwQR": 8, "IwPf": 32}
"""Inverted files of product codes, and the bytes between `by_residual` and their product quantiser (code size, block sizes)."""
INVERTED = (*PRODUCT_LISTS, "IwFl", "IwFd", "IwSq", "IwSQ")
"""Inverted files whose coarse level is read; the others hold no further code vectors."""
FLAT = ("IxFl", "IxF2", "IxFI")
"""Vectors as they are, searched one by one."""
GRAPHS = ("IHNf", "IHNp", "IHNs", "IHN2")
"""Neighbour graphs over the vectors of another index."""
DEPTH_LIMIT = 8


class FaissIndex(Checkpoint):
    """The trained tables of an index, by key: `pq.centroids` (M, ksub, dsub), `rq.codebooks` (rows, d), `xb` (n, d).

    `coarse.xb` (nlist, d) stands before the product quantiser of an IVFPQ, `transform.<i>.A` (d_out, d_in) and `.b` are
    rotations before either. `values` tells ("faiss", "fourcc" | "metric" | "d" | "M" | "nbits" | "by_residual"). An index
    of another kind lists no tensors; its fourcc tells which it is.
    """

    container = "faiss"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_only = "A faiss index is read, not written: build the smaller one in faiss from the pruned codebook."
        self.files = (path,)
        self._offsets: dict[str, int] = {}
        self._size = path.stat().st_size
        try:
            with open(path, "rb") as file:
                if path.suffix == ".pq":
                    self._product(file, "centroids")
                else:
                    self._index(file, "", 0)
        except (struct.error, OSError, OverflowError, ValueError):
            raise InputError(f"{printable(path)} is truncated.", "Copy or download it again.") from None

    def get(self, key: str) -> torch.Tensor:
        import numpy as np
        import torch

        info = self.require(key)
        with open(self.path, "rb") as file:
            file.seek(self._offsets[key])
            data = np.fromfile(file, "<f4", info.nbytes // 4)
        return torch.from_numpy(data.astype(np.float32, copy=False)).reshape(info.shape)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        return []

    def _index(self, file: BinaryIO, prefix: str, depth: int) -> None:
        if depth > DEPTH_LIMIT:
            raise InputError(f"{printable(self.path)} nests its indexes too deep.")
        fourcc = file.read(4).decode("latin-1")
        d, ntotal, _, _, _, metric = _unpack(file, "<iqqqBi")
        if metric > 1:
            _unpack(file, "<f")
        if not prefix:
            self._tell(fourcc=fourcc, metric=METRICS.get(metric, str(metric)), d=d)
        if fourcc in ("IxPq", "IxPo", "IPfs"):
            self._product(file, f"{prefix}pq.centroids")
        elif fourcc == "IxRq":
            self._residual(file, f"{prefix}rq.codebooks")
        elif fourcc in FLAT:
            (length,) = _unpack(file, "<Q")
            self._floats(file, f"{prefix}xb", length, (ntotal, d))
        elif fourcc in INVERTED:
            self._inverted(file, prefix, depth, fourcc)
        elif fourcc in GRAPHS:
            self._graph(file)
            self._index(file, prefix, depth + 1)
            if not prefix:
                self._tell(fourcc=fourcc)  # the graph is what the index is; its vectors are only stored
        elif fourcc in ("IxMp", "IxM2", "IxRF"):  # numbered, or refined by an index behind this one
            self._index(file, prefix, depth + 1)
        elif fourcc == "IxPT":
            for i in range(_unpack(file, "<i")[0]):
                self._transform(file, f"{prefix}transform.{i}")
            self._index(file, prefix, depth + 1)

    def _tell(self, **values: object) -> None:
        self.values.update({("faiss", name): value for name, value in values.items()})

    def _product(self, file: BinaryIO, key: str) -> None:
        d, m, nbits, length = _unpack(file, "<QQQQ")
        if not (m and d % m == 0 and nbits <= 24):
            raise InputError(f"{printable(self.path)} is damaged: a product quantiser of d {d}, M {m}, {nbits} bits.")
        self._tell(d=d, M=m, nbits=nbits)
        self._floats(file, key, length, (m, 1 << nbits, d // m))

    def _residual(self, file: BinaryIO, key: str) -> None:
        d, m, count = _unpack(file, "<QQQ")
        if m != count or not 0 < m <= 1 << 16:
            raise InputError(f"{printable(self.path)} is damaged: a residual quantiser of {m} levels, {count} sizes.")
        nbits = list(_unpack(file, f"<{m}Q"))
        if max(nbits) > 24:
            raise InputError(f"{printable(self.path)} is damaged: a level of {max(nbits)} bits.")
        self._tell(M=m, nbits=nbits)
        _, length = _unpack(file, "<BQ")
        self._floats(file, key, length, (sum(1 << n for n in nbits), d))

    def _inverted(self, file: BinaryIO, prefix: str, depth: int, fourcc: str) -> None:
        _unpack(file, "<QQ")  # nlist, nprobe
        self._index(file, f"{prefix}coarse.", depth + 1)
        kind, length = _unpack(file, "<BQ")  # the direct map
        self._skip(file, 8 * length)
        if kind == 2:
            self._skip(file, 16 * _unpack(file, "<Q")[0])
        if fourcc in PRODUCT_LISTS:
            self._tell(by_residual=bool(_unpack(file, "<B")[0]))
            file.seek(PRODUCT_LISTS[fourcc], 1)
            self._product(file, f"{prefix}pq.centroids")

    def _graph(self, file: BinaryIO) -> None:
        """Pass over the links of an HNSW; the vectors follow as an index of their own."""
        for width in (8, 4, 4, 8, 4):  # probabilities, neighbours per level, levels, offsets, neighbours
            self._skip(file, width * _unpack(file, "<Q")[0])
        _unpack(file, "<iiiii")  # entry point, highest level, two search widths, an upper beam

    def _skip(self, file: BinaryIO, count: int) -> None:
        """Pass over `count` bytes. ValueError where the file ends before."""
        if count > self._size - file.tell():
            raise ValueError("a vector that reaches past the end")
        file.seek(count, 1)

    def _transform(self, file: BinaryIO, key: str) -> None:
        kind = file.read(4)
        if kind == b"Pcam":
            _unpack(file, "<ff?i")  # settings of the training; then mean, eigenvalues, and the whole of them
            for _ in range(3):
                self._skip(file, 4 * _unpack(file, "<Q")[0])
        elif kind not in (b"LTra", b"rrot"):
            raise InputError(
                f"{printable(self.path)} has a transform of kind {kind!r} before its quantiser, which toc does not read.",
                "Save the index without it, or export the centroids with np.save.",
            )
        has_bias, length = _unpack(file, "<BQ")
        at = file.tell()
        self._skip(file, 4 * length)
        (bias_length,) = _unpack(file, "<Q")
        bias_at = file.tell()
        self._skip(file, 4 * bias_length)
        d_in, d_out, _ = _unpack(file, "<iiB")
        end = file.tell()
        file.seek(at)
        self._floats(file, f"{key}.A", length, (d_out, d_in))
        if has_bias:
            file.seek(bias_at)
            self._floats(file, f"{key}.b", bias_length, (d_out,))
        file.seek(end)

    def _floats(self, file: BinaryIO, key: str, length: int, shape: tuple[int, ...]) -> None:
        info = TensorInfo((), key, shape, "float32")
        at = file.tell()
        if info.nbytes != 4 * length or at + info.nbytes > self._size:
            raise InputError(
                f"{printable(self.path)} is truncated or damaged: {key} of shape {shape} does not fit {length:,} floats "
                f"in {self._size:,} bytes."
            )
        self.infos[key] = info
        self._offsets[key] = at
        file.seek(info.nbytes, 1)


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
