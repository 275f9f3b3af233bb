"""Every backend against the plain loops, on plain and adversarial data: indices, distances and near ties, bit for bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import nearest_two
from toc_cli.bench.assign_cases import CASES
from toc_cli.errors import InputError
from toc_cli.ops import assign as door
from toc_cli.ops.assign import NEAR, native
from toc_cli.ops.assign.search import backend_search

SHAPES = [(90, 75, 8), (40, 130, 33), (35, 20, 300), (50, 40, 1), (20, 1, 3), (1, 7, 17)]
NATIVE = native.library() is not None


@pytest.fixture(scope="session")
def wide_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The compiled search with the tile of AVX-512, on any machine: 16 lanes and 12 codes in plain vector code."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the wide kernel with")
    source = Path(native.__file__).with_name("_search.c")
    target = tmp_path_factory.mktemp("wide") / "wide.so"
    flags = [
        "-O1",
        "-ffp-contract=off",
        "-Wno-psabi",
        "-shared",
        "-fPIC",
        "-DTOC_PORTABLE_LANES=16",
        "-DTOC_PORTABLE_CODES=12",
    ]
    subprocess.run([compiler, *flags, "-o", str(target), str(source), "-lm"], check=True)
    return native.declare(ctypes.CDLL(str(target)))


@pytest.fixture(params=["naive", "torch", "portable", "avx2", "avx2-fine", "avx512", "avx512vnni", "wide"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that this machine runs; the compiled one on each of its instruction sets, with its coarse pass and without."""
    if request.param in ("naive", "torch"):
        return request.param
    monkeypatch.setattr(native, "COARSE_ROWS", 10**9 if request.param == "avx2-fine" else 0)
    if request.param == "wide":
        library = request.getfixturevalue("wide_library")
        monkeypatch.setattr(native, "library", lambda: library)
    elif not NATIVE:
        pytest.skip("the compiled search was not built here")
    wish = "portable" if request.param == "wide" else request.param.removesuffix("-fine")
    monkeypatch.setenv("TOC_NATIVE", wish)
    if native.instruction_set() != wish:
        pytest.skip(f"this machine has no {wish}")
    return "native"


def check(backend: str, x: Tensor, codes: Tensor, metric: str) -> None:
    index, best, second = (
        torch.from_numpy(part) for part in nearest_two(x.double().numpy(), codes.double().numpy(), metric)
    )
    near = (second - best) <= NEAR * best.abs()
    search = backend_search(backend)
    assert torch.equal(search(x, codes, metric, None, 0.0).index, index)
    both = search(x, codes, metric, None, torch.inf)
    assert torch.equal(both.index, index)
    assert torch.equal(both.best, best)
    assert torch.equal(both.second, second)
    ties = search(x, codes, metric, None, NEAR)
    assert torch.equal(ties.index, index)
    assert torch.equal(ties.best, best)
    assert torch.equal((ties.second - ties.best) <= NEAR * ties.best.abs(), near)


@pytest.mark.parametrize("case", CASES)
def test_cases(backend: str, case: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for number, (n, k, d) in enumerate(SHAPES):
        x, codes = CASES[case](n, k, d, generator)
        for metric in door.METRICS if number == 1 else ("euclidean",):
            check(backend, x, codes, metric)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", door.METRICS)
def test_dtypes(backend: str, dtype: torch.dtype, metric: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x, codes = (torch.randn(size, 19, generator=generator, dtype=torch.float64).to(dtype) for size in (60, 45))
    check(backend, x, codes, metric)
    check(backend, x, codes.float(), metric)


def test_double_precision_decides(backend: str) -> None:
    """Codes that are one in float32 and two in float64."""
    x = torch.zeros(3, 4, dtype=torch.float64)
    codes = torch.ones(2, 4, dtype=torch.float64) * torch.tensor([[1 + 1e-13], [1.0]], dtype=torch.float64)
    assert backend_search(backend)(x, codes, "euclidean", None, 0.0).index.tolist() == [1, 1, 1]


def test_large_values(backend: str) -> None:
    """Squares that overflow float32 but not float64."""
    generator = torch.Generator().manual_seed(5)
    for scale in (1e25, 1e37, 1e-30):
        x, codes = (torch.randn(size, 6, generator=generator) * scale for size in (30, 20))
        check(backend, x, codes, "euclidean")
        check(backend, x, torch.randn(20, 6, generator=generator), "euclidean")
        check(backend, x, codes, "dot")


@pytest.mark.parametrize("full", [True, False])
def test_kept_columns_and_strides(backend: str, full: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    wide = torch.randn(24, 2 * 70, generator=generator).T[::2]  # (70, 24), rows and columns apart
    codes = torch.randn(2 * 33, 24, generator=generator)[::2].T.contiguous().T
    kept = torch.tensor([1, 2, 5, 11, 12, 23])
    index, _, _ = nearest_two(wide[:, kept].numpy(), codes[:, kept].numpy())
    given = codes if full else codes[:, kept]
    assert np.array_equal(backend_search(backend)(wide, given, "euclidean", kept, 0.0).index, index)
    index, _, _ = nearest_two(wide.numpy(), codes.numpy(), "dot")
    assert np.array_equal(backend_search(backend)(wide, codes, "dot", None, 0.0).index, index)


def test_expanded_rows(backend: str) -> None:
    x = torch.randn(1, 9, generator=torch.Generator().manual_seed(7)).expand(40, 9)
    codes = torch.randn(30, 9, generator=torch.Generator().manual_seed(8))
    check(backend, x, codes, "euclidean")


def test_codebook_in_slices(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A codebook larger than what is packed at a time, rows larger than what is searched at a time."""
    monkeypatch.setattr(native, "PANEL_ELEMENTS", 64)
    monkeypatch.setattr(native, "ROW_STATE", 16)
    generator = torch.Generator().manual_seed(9)
    for name in ("gaussian", "ties", "duplicates"):
        check(backend, *CASES[name](50, 41, 8, generator), "euclidean")
        check(backend, *CASES[name](50, 41, 8, generator), "cosine")
    codes = torch.randn(41, 8, generator=generator)
    codes[30, 1] = torch.nan
    with pytest.raises(InputError, match="Row 30 of the codebook"):
        door.assign(torch.zeros(2, 8), codes, backend=backend)


def test_largest_codebook(backend: str) -> None:
    generator = torch.Generator().manual_seed(10)
    x, codes = torch.randn(3, 4, generator=generator), torch.randn(65536, 4, generator=generator)
    check(backend, x, codes, "euclidean")


@pytest.mark.skipif(not NATIVE, reason="the compiled search was not built here")
def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "INLINE_WORK", 1)
    x, codes = CASES["kmeans"](3000, 64, 16, torch.Generator().manual_seed(11))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = native.search(x, codes, "euclidean", None, torch.inf)
        torch.set_num_threads(3)
        three = native.search(x, codes, "euclidean", None, torch.inf)
    finally:
        torch.set_num_threads(before)
    for name in ("index", "best", "second"):
        assert torch.equal(getattr(one, name), getattr(three, name))
    assert one.checked == three.checked > 0
