"""What a training step costs: per stage, per loss term, in memory, and two-stage alignment against the uniform one.

Every workload runs in a process of its own, so that its peak memory is its own. Beside each stands its floor, torch's
own convolutions of the same shapes, forward and backward, timed between the steps of the same process.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toc_cli.errors import OutputError
from toc_cli.fcid.aligner import Aligner, Term
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import Alignment, ModalitySpec, Profile, profile_config, with_options
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.memory import steady_memory
from toc_cli.fcid.model import build_model
from toc_cli.fcid.modules.convolution import Form, SmallConv

STEPS_A_REPEAT = {"AV-Digits": 5, "published": 1}
CLIP = 0.5


@dataclass(frozen=True)
class Workload:
    """A model on random clips of the sizes of some data."""

    sizes: str
    profile: Profile
    alignment: Alignment

    def model(self) -> tuple[Aligner[Any], Batch]:
        if self.sizes == "published":
            shapes, clips, options = {"video": (512, (7, 7)), "audio": (128, ()), "text": (768, ())}, 8, {}
        else:
            shapes, clips = {"video": (32, (4, 4)), "audio": (128, ()), "text": (64, ())}, 64
            options = {"width": 64, "codebook.size": 128}
        specs = {name: ModalitySpec(name, 10, width, spatial) for name, (width, spatial) in shapes.items()}
        torch.manual_seed(0)
        model: Aligner[Any] = build_model(with_options(profile_config(self.profile, self.alignment), options), specs)
        x = {name: torch.randn(clips, 10, *spec.spatial, spec.width) for name, spec in specs.items()}
        return model, Batch(x, caption=torch.randint(clips // 2, (clips,)))


WORKLOADS = [
    *(Workload("AV-Digits", profile, a) for profile in ("corrected", "published") for a in ("fine-coarse", "uniform")),
    *(Workload("published", "published", a) for a in ("fine-coarse", "uniform")),
]


def measure(device: str = "auto", repeats: int = 3) -> dict[str, Any]:
    """Rows of seconds per step, stage and loss term, peak bytes, and the overhead of the two stages.

    Seconds are medians; a step is the sum of its stages.

    CPU figures are those of as many threads as torch takes; OMP_NUM_THREADS=1 gives those of one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {workload: _in_process(workload, device, repeats) for workload in WORKLOADS}
    rows: list[dict[str, Any]] = []
    for workload, figures in found.items():
        name = {"sizes": workload.sizes, "model": f"{workload.profile} {workload.alignment}"}
        step = figures["step"]
        other = found[dataclasses.replace(workload, alignment="uniform")]
        rows.append(
            name
            | {"part": "step", "seconds": step, "share": 1.0, "peak_bytes": figures["peak_bytes"]}
            | {
                "floor_seconds": figures["floor"],
                "over_floor": step / figures["floor"],
                "over_uniform": step / other["step"],
            }
        )
        parts = [(stage, seconds) for stage, seconds in figures["stages"].items()]
        parts += [(f"loss {term}", seconds) for term, seconds in figures["terms"].items()]
        rows += [name | {"part": part, "seconds": seconds, "share": seconds / step} for part, seconds in parts]
    return {"bench": "train", "device": device, "threads": torch.get_num_threads(), "rows": rows}


def run(workload: Workload, device: str, repeats: int) -> dict[str, Any]:
    """The figures of one workload, in this process."""
    model, batch = workload.model()
    model, batch = model.to(device), batch.to(device)
    groups = model.parameter_groups()
    main, mi = (torch.optim.Adam(groups[name], 1e-3, fused=True) for name in ("main", "mi"))
    laps: dict[str, list[float]] = {}
    floor: list[float] = []
    peak = 0
    for number in range(1 + repeats * STEPS_A_REPEAT[workload.sizes]):
        draws = Draws.of_step(0, number, device)
        for stage, seconds in _step(model, batch, draws, main, mi, device):
            if number:  # the first step also allocates
                laps.setdefault(stage, []).append(seconds)
        if number == 1:
            peak = _peak_bytes(device)  # of a step with the optimiser's state there, before the floor takes its own
            bare = _bare_convolutions(model, len(batch) * next(iter(batch.x.values())).shape[1], device)
        if number:
            floor.append(_timed(bare, device))
    stages = {stage: statistics.median(seconds) for stage, seconds in laps.items()}
    return {
        "step": sum(stages.values()),
        "stages": stages,
        "terms": _terms(model, batch, device, repeats),
        "floor": statistics.median(floor),
        "peak_bytes": peak,
    }


def _step(
    model: Aligner[Any], batch: Batch, draws: Draws, main: torch.optim.Adam, mi: torch.optim.Adam, device: str
) -> Iterator[tuple[str, float]]:
    """One training step; yields each stage with its seconds."""
    comm = Comm().bind(len(batch))
    box: list[Any] = []
    yield "encode, quantise", _timed(lambda: box.append(model(batch, draws, comm)), device)
    yield "MI nets", _timed(lambda: model.update_mi(box[0], batch, mi, comm), device)
    yield "losses", _timed(lambda: box.append(model.losses(box[0], batch, draws, comm).total), device)
    yield "backward", _timed(lambda: box[1].backward(), device)
    yield "clip, optimise", _timed(lambda: _descend(model, main), device)


def _descend(model: Aligner[Any], optimizer: torch.optim.Adam) -> None:
    for parameters in model.clip_groups().values():
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
    optimizer.step()
    optimizer.zero_grad()


def _terms(model: Aligner[Any], batch: Batch, device: str, repeats: int) -> dict[str, float]:
    """Seconds of each term alone: forward, and backward to the features it starts from."""
    comm, draws = Comm().bind(len(batch)), Draws.of_step(0, 0, device)
    features = _leaves(model(batch, draws, comm))

    def seconds(term: Term) -> float:
        def once() -> None:
            torch.stack(list(term().values())).sum().backward()

        return statistics.median(_timed(once, device) for _ in range(repeats))

    found = {name: seconds(term) for name, term in model.terms(features, batch, draws, comm).items()}
    model.zero_grad()
    return found


def _leaves(value: Any) -> Any:
    """The same features, cut off from the encoders."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _leaves(inner) for name, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _leaves(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def _bare_convolutions(model: Aligner[Any], frames: int, device: str) -> Callable[[], None]:
    """Torch's own convolutions of the model's shapes, forward and backward, on tensors laid out for them."""
    layout = torch.channels_last
    work: list[tuple[Form, Tensor, Tensor]] = []
    for conv in model.modules():
        if isinstance(conv, SmallConv):
            kernel = conv.torch_kernel().detach().contiguous(memory_format=layout).requires_grad_()
            width = conv.weight.shape[1]
            maps = torch.randn(frames, width, *conv.size, device=device).contiguous(memory_format=layout)
            work.append((conv.form, maps.requires_grad_(bool(work)), kernel))  # the data itself needs no gradient

    def once() -> None:
        for form, maps, kernel in work:
            if form == "transposed":
                y = F.conv_transpose2d(maps, kernel)
            else:
                y = F.conv2d(maps, kernel, padding="same" if form == "same" else 0)
            y.backward(torch.ones_like(y))
            maps.grad = kernel.grad = None

    return once


def _timed(work: Callable[[], object], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _in_process(workload: Workload, device: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "toc_cli.fcid.bench", json.dumps([dataclasses.asdict(workload), device, repeats])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OutputError(f"The step of {workload} could not be measured: {last}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    fields, where, times = json.loads(sys.argv[1])
    with steady_memory():
        print(json.dumps(run(Workload(**fields), where, times)))
