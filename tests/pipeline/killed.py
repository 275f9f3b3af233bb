"""A process that runs `optimize` again and again with `--force` and kills each run at a random moment (SIGKILL).

Prints a line for each: how the outputs stood at once, and after the next run to the same target had begun.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from toc_cli.io.publish import recover
from toc_cli.pipeline import Options, Outputs, Plan, plan_optimization

EMIT = ("codebook", "masked", "sliced")


def main(checkpoint: Path, features: Path, seed: int, kills: int) -> None:
    home = checkpoint.parent
    plans = [plan(checkpoint, features, keep) for keep in ("0.5", "0.25")]
    plans[1].write()
    other = state(home)
    began = time.perf_counter()
    plans[0].write()
    took = time.perf_counter() - began
    names = {0: state(home), 1: other}
    stands, draw = 0, random.Random(seed)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            plans[1 - stands].write()
            os._exit(0)
        time.sleep(draw.uniform(0.3, 1.1) * took)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        at_once = state(home)
        mixed = set(at_once.items()) - set(names[0].items()) - set(names[1].items())
        carried_out = recover(home / "m")
        after = state(home)
        left = [path.name for path in home.iterdir() if path.name.startswith(".")]
        stands = next((which for which, known in names.items() if known == after), -1)
        print(stands, len(mixed), int(carried_out), len(left), int(at_once in names.values()), flush=True)
        assert stands >= 0


def plan(checkpoint: Path, features: Path, keep: str) -> Plan:
    outputs = Outputs(checkpoint, EMIT, checkpoint.with_name("m.toc.safetensors"), force=True)
    made = plan_optimization(checkpoint, features, Options(keep=keep, emit=EMIT, space="encoder"), outputs)
    made.record["timing"] = {}
    return made


def state(home: Path) -> dict[str, str]:
    """SHA-256 of every file under the names of the run."""
    files = [path for path in home.rglob("*") if path.is_file() and not path.parts[len(home.parts)].startswith(".")]
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
