"""One codebook searched by many threads at once: the tokens of a single thread, and torch left as it was."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from toc_cli.ops.assign import Searcher, native
from toc_cli.ops.linear import one_thread
from toc_cli.ops.quantiser import quantiser


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512vnni"])
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_many_threads_find_what_one_finds(workers: int, isa: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOC_NATIVE", isa)
    if native.instruction_set() != isa:
        pytest.skip(f"this machine does not run {isa}")
    made = torch.Generator().manual_seed(workers)
    codes, x = torch.randn(300, 24, generator=made), torch.randn(40_000, 24, generator=made)
    x[::7] = (codes[3] + codes[11]) / 2  # ties go through every pass
    alone = Searcher(codes, metric).nearest(x)
    for rows in (50, 700, 4096):  # below and above the rows of a coarse pass
        shared = Searcher(codes, metric)  # packed by whoever comes first
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(shared.nearest, x.split(rows)))
        assert torch.equal(torch.cat([part.indices for part in found]), alone.indices)
        assert torch.equal(torch.cat([part.distance for part in found]), alone.distance)
        assert torch.equal(torch.cat([part.near_tie for part in found]), alone.near_tie)


def test_threads_share_a_residual_quantiser() -> None:
    made = torch.Generator().manual_seed(0)
    form = quantiser([torch.randn(2, 64, 8, generator=made) for _ in range(3)], residual=True)
    x = torch.randn(12_000, 16, generator=made)
    alone = form.tokens(x)
    with ThreadPoolExecutor(4) as pool:
        assert torch.equal(torch.cat(list(pool.map(form.tokens, x.split(500)))), alone)


def test_one_thread_gives_every_caller_its_own_number_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inside, leave = threading.Event(), threading.Event()
        after: list[int] = []

        def other() -> None:
            with one_thread():
                inside.set()
                leave.wait(10)
            after.append(torch.get_num_threads())

        thread = threading.Thread(target=other)
        with one_thread():  # entered first, left while the other is still inside
            thread.start()
            assert inside.wait(10)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        leave.set()
        thread.join()
        assert after == [3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
