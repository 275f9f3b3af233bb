"""Every criterion on six ordinary tokenizers: the table in README, printed by `python examples/criteria.py [FOLDER]`.

Token agreement in percent at 50 / 25 / 12.5 % of the dimensions. Needs scikit-learn for its digits (nothing is downloaded);
the tokenizers are made on one thread from fixed seeds, and left in FOLDER where one is given.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import toc_cli
from toc_cli.demo import CHECKPOINT, FEATURES
from toc_cli.ops.criterion import CRITERIA

KEEPS = ("0.5", "0.25", "0.125")
SWEEP = ",".join(KEEPS)
SEEDS = range(8)


def lloyd(x: torch.Tensor, count: int, steps: int = 25, unit: bool = False) -> torch.Tensor:
    """`count` codes (K, D) of k-means on x (N, D) from evenly spaced rows; on the sphere with `unit`."""
    codes = x[torch.arange(count) * len(x) // count].clone()
    for _ in range(steps):
        tokens = toc_cli.quantize(x, codes)
        for k in tokens.unique():
            codes[k] = x[tokens == k].mean(0)
        if unit:
            codes = torch.nn.functional.normalize(codes, dim=1)
    return codes


def trained_vq(x: torch.Tensor, count: int, dim: int, steps: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (K, D) and encoded rows (N, D) of a VQ autoencoder of one layer each way, straight-through, trained for a moment."""
    encoder, decoder = torch.nn.Linear(x.shape[1], dim), torch.nn.Linear(dim, x.shape[1])
    codes = torch.nn.Parameter(encoder(x[:count]).detach().clone())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), codes], lr=3e-3)
    for step in range(steps):
        batch = x[torch.arange(256) * 7919 * (step + 1) % len(x)]
        z = encoder(batch)
        q = codes[toc_cli.quantize(z.detach(), codes.detach())]
        loss = torch.nn.functional.mse_loss(decoder(z + (q - z).detach()), batch)
        loss = loss + torch.nn.functional.mse_loss(q, z.detach()) + 0.25 * torch.nn.functional.mse_loss(z, q.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return codes.detach(), encoder(x).detach()


def tokenizers(folder: Path) -> dict[str, tuple[Path, Path, Mapping[str, Any]]]:
    """Per name the checkpoint, its features, and how it is read."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = torch.from_numpy(load_digits().data.astype(np.float32))
    rng = np.random.default_rng(0)
    hidden = torch.relu(digits / 16 @ torch.from_numpy(rng.standard_normal((64, 32)).astype(np.float32)))
    mixing = rng.standard_normal((32, 32)) * np.exp(-np.arange(32) / 10)
    centres = rng.standard_normal((256, 32)) @ mixing
    noise = rng.standard_normal((4000, 32)) @ mixing * 0.6
    mixture = torch.from_numpy((centres[rng.integers(0, 256, 4000)] + noise).astype(np.float32))
    codes, encoded = trained_vq(digits / 16, 64, 16)
    levels, left = [], hidden
    for _ in range(4):
        levels.append(lloyd(left, 64))
        left = left - levels[-1][toc_cli.quantize(left, levels[-1])]
    plain = {"metric": "euclidean"}
    tables: dict[str, tuple[dict[str, torch.Tensor], torch.Tensor, Mapping[str, Any]]] = {
        "k-means": ({"codebook": lloyd(digits, 128)}, digits, plain),
        "mixture": ({"codebook": lloyd(mixture, 256)}, mixture, plain),
        "VQ": ({"codebook": codes}, encoded, plain),
        "cosine VQ": (
            {"codebook": lloyd(torch.nn.functional.normalize(hidden, dim=1), 96, unit=True)},
            hidden,
            {"metric": "cosine"},
        ),
        "RVQ": ({f"layers.{q}._codebook.embed": e[None] for q, e in enumerate(levels)}, hidden, {}),
    }
    found: dict[str, tuple[Path, Path, Mapping[str, Any]]] = {}
    for name, (tensors, features, reading) in tables.items():
        stem = folder / name.replace(" ", "-")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, stem.with_suffix(".safetensors"))
        np.save(stem.with_suffix(".npy"), features.numpy())
        found[name] = (stem.with_suffix(".safetensors"), stem.with_suffix(".npy"), reading)
    return {**found, "demo": (CHECKPOINT, FEATURES, {})}


def curves(checkpoint: Path, features: Path, reading: Mapping[str, Any]) -> dict[str, list[float]]:
    """Agreement of every criterion that the features allow, in percent, at each of KEEPS on all rows."""
    found: dict[str, list[float]] = {}
    for name, row in CRITERIA.items():
        if name in found or (row.need == "pairs" and features != FEATURES):
            continue
        plan = toc_cli.optimize(checkpoint, features, criterion=name, sweep=SWEEP, eval_rows=None, **reading)
        sweep = plan.metrics[0]["sweep"]["criteria"]
        for each, curve in sweep.items():  # criteria of codes and usage come along with any
            found[each] = [100 * value for value in reversed(curve["token_agreement"])]
    return {name: found[name] for name in CRITERIA if name in found}


def chosen(checkpoint: Path, features: Path, reading: Mapping[str, Any]) -> tuple[list[list[str]], float]:
    """What `auto` takes at each of KEEPS by each of SEEDS, which draw the rows that it chooses on; and what its whole run costs in
    runs of `pca`: the least of three times each."""

    def run(criterion: str, keep: str, seed: int = 0) -> Any:
        asked = {"criterion": criterion, "keep": keep, "seed": seed, **reading}
        return toc_cli.optimize(checkpoint, features, eval_rows=None, **asked)

    took = [[run("auto", keep, seed).metrics[0]["auto"]["criterion"] for keep in KEEPS] for seed in SEEDS]
    seconds = {}
    for criterion in ("pca", "auto"):
        times = []
        for _ in range(3):
            start = time.process_time()
            run(criterion, "0.25")
            times.append(time.process_time() - start)
        seconds[criterion] = min(times)
    return took, seconds["auto"] / seconds["pca"]


def main(folder: Path) -> None:
    table, picks, costs = {}, {}, {}
    for name, about in tokenizers(folder).items():
        table[name] = curves(*about)
        picks[name], costs[name] = chosen(*about)
        table[name]["auto"] = [table[name][pick][at] for at, pick in enumerate(picks[name][0])]
    print(f"{'token agreement, %':18s}" + "".join(f"{name:>17s}" for name in [*table, "mean"]))
    for criterion in ["auto", *CRITERIA]:
        cells = [table[name].get(criterion) for name in table]
        known = [cell for cell in cells if cell]
        mean = [float(np.mean(column)) for column in zip(*known, strict=True)] if len(known) == len(cells) else None
        shown = ["-" if cell is None else " ".join(f"{v:.1f}" for v in cell) for cell in [*cells, mean]]
        print(f"{criterion:18s}" + "".join(f"{cell:>17s}" for cell in shown))
    behind = [
        max(rows[other][at] for other in rows) - rows[pick][at]
        for name, rows in table.items()
        for took in picks[name]
        for at, pick in enumerate(took)
    ]
    print(f"auto took {', '.join(f'{name}: ' + ' '.join(took[0]) for name, took in picks.items())}")
    print(
        f"auto is behind the best fixed criterion by at most {max(behind):.1f} points in {len(behind)} runs of {len(SEEDS)} seeds"
    )
    print(f"auto costs {min(costs.values()):.1f} to {max(costs.values()):.1f} runs of pca")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
