"""Python pickles, plain or of joblib, compressed or not: read without running anything.

What they hold of arrays is listed like a torch file's: dictionaries are sections, an estimator of scikit-learn is the
section of its attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.inert import Bounded, InertUnpickler
from toc_cli.io.checkpoint.rebuild import ARRAYS, JOBLIB, Estimator, Rebuild
from toc_cli.io.checkpoint.strided import Strided
from toc_cli.io.checkpoint.torch_file import damaged, read_legacy_bytes, refuse_programs
from toc_cli.io.checkpoint.tree import leaves
from toc_cli.io.head import Head
from toc_cli.io.inflate import compression, inflated
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

SIZE_LIMIT = 1 << 40
"""Bytes that a decompressed stream may claim; `inflate` bounds what it gives."""
NEAREST = {"KMeans", "MiniBatchKMeans"}
"""Estimators whose label is the nearest row of `cluster_centers_`."""
BEFORE = {
    "compose", "cross_decomposition", "decomposition", "discriminant_analysis", "feature_extraction", "feature_selection",
    "impute", "kernel_approximation", "manifold", "neural_network", "pipeline", "preprocessing", "random_projection",
}  # fmt: skip
"""Rooms of scikit-learn whose estimators change the features before a k-means sees them."""
EXPORT = "np.save('codebook.npy', joblib.load(path).cluster_centers_)"


class PickleFile(Checkpoint):
    """One pickle."""

    container = "pickle"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        tree, unpickler = self._read(Head(path))
        self.read_only = "A Python pickle is read without running it, and never written."
        self.files = (path,)
        self._arrays: dict[str, Strided] = {}
        for place, leaf in leaves(tree):
            names = tuple(str(part) for part in place)
            if isinstance(leaf, Strided):
                storage = leaf.storage.key if leaf.storage.nbytes else None
                info = TensorInfo(names[:-1], names[-1] if names else "", leaf.shape, leaf.stored, storage)
                self.infos[info.key] = info
                self._arrays[info.key] = leaf
            else:
                self.values[names] = leaf
        kinds = [found.kind for found in unpickler.foreign.values() if _is_estimator(found)]
        self.values["classes",] = kinds
        refuse_unlike(printable(path), kinds)
        if not self.infos:
            what = f" ({', '.join(printable(name, 80) for name in unpickler.names[:3])})" if unpickler.names else ""
            raise InputError(
                f"{printable(path)} is a Python pickle{what} without an array that can be read unless it is run.",
                f"Export the array where you trust the file: {EXPORT}.",
            )

    def _read(self, head: Head) -> tuple[Any, InertUnpickler]:
        def nested(data: object) -> Any:
            return read_legacy_bytes(head.shown, data) if isinstance(data, bytes) else None

        known = {**ARRAYS, **JOBLIB, ("torch.storage", "_load_from_bytes"): Rebuild(nested)}
        with inflated(head.path, head.start) as file:
            packed = bool(compression(head.start))
            source = Bounded(file, SIZE_LIMIT if packed else head.size)
            unpickler = InertUnpickler(source, known, None, self._bytes_at(head, packed))
            try:
                tree = unpickler.load()
            except Exception as error:  # whatever a parser makes of broken bytes
                refuse_programs(head.shown, unpickler)
                _refuse_old_joblib(head, unpickler)
                if isinstance(error, InputError):
                    raise InputError(f"{head.shown} is refused: {error.what}", error.hint) from None
                raise damaged(f"{head.shown}, a Python pickle,", error) from None
        refuse_programs(head.shown, unpickler)
        _refuse_old_joblib(head, unpickler)
        return tree, unpickler

    def _bytes_at(self, head: Head, packed: bool) -> Callable[[int], Callable[[int, int], bytearray]]:
        """Readers of the bytes of an array: a compressed file is unpacked again up to there."""

        def placed(start: int) -> Callable[[int, int], bytearray]:
            def read(first: int, count: int) -> bytearray:
                with inflated(head.path, head.start) as file:
                    Bounded(file, SIZE_LIMIT if packed else head.size).skip(start + first)
                    return bytearray(file.read(count))

            return read

        return placed

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        try:
            return self._arrays[key].tensor()
        except InputError as error:
            raise InputError(f"{printable(self.path)}: {printable(key)}: {error.what}", error.hint) from None
        except (OSError, EOFError) as error:
            raise damaged(printable(self.path), error) from None

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        return []


def _is_estimator(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Estimator)


def refuse_unlike(shown: str, kinds: list[str]) -> None:
    """InputError for estimators whose tokens are not the nearest centre of the features as they are."""
    named = [(kind.split(".")[1] if "." in kind else "", kind.rpartition(".")[2]) for kind in kinds]
    before = [name for room, name in named if room in BEFORE]
    if before:
        raise InputError(
            f"{shown} holds {', '.join(map(printable, before))} before its k-means: the centres are not in the space "
            "of the features.",
            "Give the transformed features (pipeline[:-1].transform) and the centres alone: "
            "np.save('codebook.npy', pipeline[-1].cluster_centers_).",
        )
    others = [name for room, name in named if room in ("cluster", "mixture") and not name.startswith("_")]
    if others and not NEAREST & set(others):
        raise InputError(
            f"{shown} holds {', '.join(map(printable, others))}, whose labels are not those of the nearest centre.",
            "toc reads KMeans and MiniBatchKMeans.",
        )


def _refuse_old_joblib(head: Head, unpickler: InertUnpickler) -> None:
    if any(module == "joblib.numpy_pickle" and "NDArray" in name for module, name in unpickler.foreign):
        raise InputError(
            f"{head.shown} was written by joblib before 0.10, which kept its arrays in files of their own.",
            f"Export the array where you trust the file: {EXPORT}.",
        )
