"""The door: shapes, errors, ties, heads, residual levels, near ties; compiled and exported; without the compiled search."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from reference import nearest_two
from toc_cli.errors import InputError, UsageError
from toc_cli.ops.assign import METRICS, assign, assign_heads, assign_residual, blas, naive, native, nearest

ANY = torch.Generator().manual_seed(0)


def test_ties_go_to_the_smaller_index() -> None:
    codes = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert assign(torch.zeros(2, 2), codes).tolist() == [1, 1]


def test_no_rows_one_code_one_dimension() -> None:
    assert assign(torch.empty(0, 3), torch.randn(4, 3)).shape == (0,)
    empty = nearest(torch.empty(0, 3), torch.randn(4, 3), second=True)
    assert empty.distance.shape == empty.near_tie.shape == (0,)
    one = nearest(torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0]]), second=True)
    assert one.indices.tolist() == [0, 0]
    assert one.distance.tolist() == [4.0, 16.0]
    assert one.second_distance is not None
    assert one.second_distance.tolist() == [torch.inf, torch.inf]
    assert not one.near_tie.any()


def test_distances_are_squared_or_negative_similarities() -> None:
    x, codes = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert nearest(x, codes).distance.tolist() == [13.0, 1.0]
    assert nearest(x, codes, metric="dot").distance.tolist() == [-8.0, 0.0]
    cosine = nearest(x, codes, metric="cosine", second=True)
    assert cosine.distance.tolist() == [-0.8, 0.0]
    assert cosine.second_distance is not None
    assert cosine.second_distance.tolist() == [-0.6, 0.0]


def test_near_ties_are_relative() -> None:
    x = torch.tensor([[0.0]], dtype=torch.float64)
    for gap, near in ((4e-7, True), (6e-7, False)):
        codes = torch.tensor([[1.0], [-1.0 - gap]], dtype=torch.float64)  # squared: about twice the gap
        assert nearest(x, codes).near_tie.tolist() == [near]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", ["auto", "naive", "torch"])
def test_rows_that_are_not_finite(bad: float, backend: str) -> None:
    x, codes = torch.randn(300, 5, generator=ANY), torch.randn(7, 5, generator=ANY)
    x[217, 3] = x[255, 0] = bad
    with pytest.raises(InputError, match="Row 217 of the features holds NaN or Inf"):
        assign(x, codes, backend=backend)
    kept = torch.tensor([1, 2, 4])
    assert len(assign(x, codes, kept=kept, backend=backend)) == 300
    codes[2, 1] = bad
    with pytest.raises(InputError, match="Row 2 of the codebook"):
        assign(x[:5], codes, backend=backend)


@pytest.mark.parametrize(
    ("x", "codes", "kept", "words"),
    [
        ((4, 3), (5, 2), None, "Codes of 2 dimensions do not fit features of 3"),
        ((4, 3), (5, 2), [0], "Codes of 2 dimensions fit neither the 3 of the features nor the 1 kept"),
        ((4, 3), (5, 3), [0, 3], "not indices of the 3 feature dimensions"),
        ((4, 3), (5, 3), [], "not indices of the 3 feature dimensions"),
        ((4, 3), (0, 3), None, r"The codebook of shape \(0, 3\) is empty"),
        ((4,), (5, 4), None, r"not \(4,\) and \(5, 4\)"),
    ],
)
def test_shapes_that_do_not_fit(x: tuple[int, ...], codes: tuple[int, ...], kept: list[int] | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        assign(torch.zeros(x), torch.zeros(codes), kept=None if kept is None else torch.tensor(kept, dtype=torch.int64))


def test_words_that_are_not_known() -> None:
    with pytest.raises(UsageError, match="Metric 'manhattan' is not one of euclidean, cosine, dot"):
        assign(torch.zeros(1, 1), torch.zeros(1, 1), metric="manhattan")
    with pytest.raises(UsageError, match="Backend 'magic'"):
        assign(torch.zeros(1, 1), torch.zeros(1, 1), backend="magic")
    with pytest.raises(InputError, match="floating point"):
        assign(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
    with pytest.raises(UsageError, match="runs on the CPU, not on meta"):
        assign(torch.zeros(1, 1, device="meta"), torch.zeros(1, 1, device="meta"), backend="native")


def test_heads() -> None:
    x, codes = torch.randn(50, 3, 6, generator=ANY), torch.randn(3, 20, 6, generator=ANY)
    want = np.stack([nearest_two(x[:, h].numpy(), codes[h].numpy())[0] for h in range(3)], 1)
    assert np.array_equal(assign_heads(x, codes), want)
    kept = [torch.tensor([0, 2]), torch.tensor([1, 5]), torch.tensor([3, 4])]
    want = np.stack([nearest_two(x[:, h, kept[h]].numpy(), codes[h, :, kept[h]].numpy())[0] for h in range(3)], 1)
    assert np.array_equal(assign_heads(x, codes, kept=kept), want)
    with pytest.raises(InputError, match="3 heads"):
        assign_heads(x[:, :2], codes)


def test_residual_levels() -> None:
    x, codes = torch.randn(60, 6, generator=ANY), [torch.randn(k, 6, generator=ANY) / k for k in (8, 16, 4)]
    kept = torch.tensor([0, 1, 4])
    for columns in (None, kept):
        residual, want = (x if columns is None else x[:, columns]).clone(), []
        for book in codes:
            book = book if columns is None else book[:, columns]
            want.append(torch.from_numpy(nearest_two(residual.numpy(), book.numpy())[0]))
            residual = residual - book[want[-1]]
        assert torch.equal(assign_residual(x, codes, kept=columns), torch.stack(want, 1))


def test_input_is_left_alone_and_gradients_do_not_matter() -> None:
    x = torch.randn(9, 4, requires_grad=True)
    before = x.detach().clone()
    assert assign(x, torch.randn(3, 4)).dtype == torch.int64
    assign_residual(x, torch.randn(2, 3, 4))
    assert torch.equal(x, before)


def test_autocast_does_not_lower_the_precision() -> None:
    x, codes = torch.randn(200, 32, generator=ANY), torch.randn(100, 32, generator=ANY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in ("auto", "torch"):
            assert np.array_equal(assign(x, codes, backend=backend), nearest_two(x.numpy(), codes.numpy())[0])


class Quantiser(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(12, 5, generator=ANY))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = nearest(x, self.codes)
        return self.codes[assign(x, self.codes, metric="dot")] + found.distance[:, None], found.near_tie


def test_compiles_and_exports() -> None:
    module, x = Quantiser(), torch.randn(30, 5, generator=ANY)
    want = module(x)
    for run in (
        torch.compile(module, backend="aot_eager", fullgraph=True),
        torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},)).module(),
    ):
        for got, expected in zip(run(x), want, strict=True):
            assert torch.equal(got, expected)


def test_operator_is_sound() -> None:
    x, codes = torch.randn(11, 5, generator=ANY), torch.randn(4, 5, generator=ANY)
    for reach in (0.0, 1e-6):
        torch.library.opcheck(torch.ops.toc.nearest.default, (x, codes, "cosine", None, "auto", reach))


def test_without_the_compiled_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOC_NATIVE", "0")
    x, codes = torch.randn(40, 5, generator=ANY), torch.randn(9, 5, generator=ANY)
    assert np.array_equal(assign(x, codes), nearest_two(x.numpy(), codes.numpy())[0])
    with pytest.raises(UsageError, match="TOC_NATIVE=0 is set"):
        assign(x, codes, backend="native")
    monkeypatch.setenv("TOC_NATIVE", "avx1024")
    with pytest.raises(UsageError, match=r"avx1024 is no instruction set\. Set one of portable, avx2"):
        assign(x, codes)


@pytest.fixture
def other_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], None]]:
    """Puts another file where the compiled library is looked for."""

    def place(name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        spec = importlib.machinery.ModuleSpec("_search", None, origin=str(tmp_path / name)) if "abi3" in name else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
        monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
        native.loaded.cache_clear()

    yield place
    native.loaded.cache_clear()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("_search.abi3.so", b"\x7fELF\x02\x01\x01" + bytes(200), "_search.abi3.so does not load here"),
        ("_search.abi3.so", b"", "_search.abi3.so does not load here"),
        ("_search.cp39-win_amd64.pyd", b"MZ", "_search.cp39-win_amd64.pyd is of another system or Python"),
        ("other", b"", "not built when toc-cli was installed"),
    ],
)
def test_a_missing_or_foreign_extension_is_told(
    other_extension: Callable[[str, bytes], None], name: str, content: bytes, why: str
) -> None:
    other_extension(name, content)
    said = native.missing()
    assert said is not None
    assert why in said
    assert "C compiler (gcc or clang)" in said
    x, codes = torch.randn(40, 5, generator=ANY), torch.randn(9, 5, generator=ANY)
    assert np.array_equal(assign(x, codes), nearest_two(x.numpy(), codes.numpy())[0])


@pytest.mark.parametrize("switch", ["", "0"], ids=["compiled", "torch"])
def test_memory_stays_bounded(switch: str) -> None:
    """Whatever the shape, the peak of a fresh process rises by less than 256 MiB, with the compiled search and without."""
    program = (
        "import os, torch\n"
        "from toc_cli.bench.assign import extra_memory\n"
        "from toc_cli.ops.assign import assign, native\n"
        "small = torch.randn(64, 64)\n"
        "assign(small, small)\n"
        "half, single = torch.bfloat16, torch.float32\n"
        "shapes = ((1 << 20, 4, 2, single), (64, 65536, 512, single), (64, 16384, 512, half), (1 << 18, 8, 64, half),\n"
        "          (9 << 20, 3, 1, single), (64, 1 << 20, 8, single),\n"
        "          (5 << (20 if native.instruction_set() else 15), 300, 1, single))\n"
        "for n, k, d, dtype in shapes:\n"
        "    native.PANEL_ELEMENTS = 100 if k == 300 else 1 << 23  # many slices of the codebook, at little cost\n"
        "    x, codes = torch.zeros(n, d, dtype=dtype).normal_(), torch.zeros(k, d, dtype=dtype).normal_()\n"
        "    print(extra_memory(lambda: assign(x, codes), 'cpu') - n * 8)\n"  # less the answer itself
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TOC_NATIVE": switch},
    )
    if "None" in run.stdout:
        pytest.skip("this system does not tell the peak memory")
    assert all(int(line) < 256 << 20 for line in run.stdout.split())


@pytest.mark.parametrize("reach", [0.0, 1e-6, float("inf")])
def test_torch_search_in_slices_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, reach: float) -> None:
    x, codes = (torch.randint(-2, 3, (n, 4), generator=ANY).float() for n in (300, 90))  # many ties, across slices too
    columns = torch.tensor([0, 2, 3])
    monkeypatch.setattr(blas, "CODES", 7)
    monkeypatch.setattr(blas, "BLOCK", 64)
    for metric in METRICS:
        for kept in (None, columns):
            got = blas.search(x, codes, metric, kept, reach)
            want = naive.search(x, codes, metric, kept, reach)
            assert torch.equal(got.index, want.index)
            if reach:
                assert torch.equal(got.best, want.best)
            if reach == float("inf"):
                assert torch.equal(got.second, want.second)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_more_elements_than_31_bits_count(backend: str) -> None:
    """2^31 + 512 elements (one row, seen many times), and rows that lie 2^31 elements apart."""
    row, codes = torch.randn(1, 512, generator=ANY), torch.randn(3, 512, generator=ANY)
    nearest_code = int(assign(row, codes)[0])
    if backend == "auto":
        found = assign(row.expand((1 << 22) + 1, 512), codes)
        assert found.shape == ((1 << 22) + 1,)
        assert (found == nearest_code).all()
    flat = torch.from_numpy(np.zeros((1 << 31) + 512, np.float32))  # pages that nobody writes take no memory
    far = flat.as_strided((2, 512), (1 << 31, 1))
    far[1] = row[0]
    assert int(assign(far, codes, backend=backend)[1]) == nearest_code


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_small_integers_and_floats(data: st.DataObject) -> None:
    """Few distinct values make ties, extreme ones make underflow and cancellation."""
    d = data.draw(st.integers(1, 5), label="D")
    values = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-38, 1e-45, 1e18, -1e18, 1e4, 1e4 + 2**-10, 3.0])
    x = data.draw(hnp.arrays(np.float32, (data.draw(st.integers(1, 9)), d), elements=values), label="x")
    codes = data.draw(hnp.arrays(np.float32, (data.draw(st.integers(1, 15)), d), elements=values), label="codes")
    metric = data.draw(st.sampled_from(METRICS), label="metric")
    index, best, second = nearest_two(x, codes, metric)
    for backend in ("auto", "torch", "naive"):
        found = nearest(torch.from_numpy(x), torch.from_numpy(codes), metric=metric, backend=backend)
        assert np.array_equal(found.indices, index), backend
        assert np.array_equal(found.near_tie, (second - best) <= 1e-6 * np.abs(best)), backend
