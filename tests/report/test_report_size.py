"""The largest case of the specification: K = 65,536 codes, D = 1,024, 8 levels, drawn in under 20 s and 1.5 MB."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from report.run_records import build_record
from toc_cli.ops.figures import figures
from toc_cli.report import assemble, html, read_run

CODES, DIM, LEVELS = 65_536, 1_024, 8


def test_page_of_the_largest_codebook(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(CODES, DIM, generator=generator) * torch.linspace(2, 0.1, DIM) + 0.1
    usage = (torch.rand(CODES, generator=generator) ** 8 * 1000).long()
    started = time.process_time()
    figure = figures(codes, codes[:, : DIM // 2], usage, usage.flip(0))
    assert time.process_time() - started < 20
    record = build_record(codes=16, dim=DIM, rows=100, levels=LEVELS, sweep=False, modalities=("audio",))
    book = record["codebooks"][0]
    book["num_codes"] = [CODES] * LEVELS
    book["figures"] = [{"level": level, "head": 0, **figure} for level in range(LEVELS)]
    rng = np.random.default_rng(0)
    for name in ("score", "similarity", "variance"):
        book[name] = rng.normal(size=(LEVELS, 1, DIM)).tolist()
    book["order"] = [[rng.permutation(DIM).tolist()] for _ in range(LEVELS)]
    book["kept"] = [[sorted(order[0][: DIM // 2])] for order in book["order"]]
    path = tmp_path / "large.toc.json"
    path.write_text(json.dumps(record, sort_keys=True), encoding="utf-8")
    assert path.stat().st_size < 2_000_000

    started = time.process_time()
    page = html.render(assemble([read_run(path)]))
    assert time.process_time() - started < 20
    assert len(page.encode()) < 1_500_000
    assert page.count("<svg") > 30
