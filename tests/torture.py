"""Standing torture: mutations of valid small files against every reader, for a stated time and seed.

    python tests/torture.py --seconds 60 --seed 7            every reader in turn
    python tests/torture.py --count 5000 --reader torch      so many inputs of one
    python tests/torture.py --replay 7:torch:123 --keep out  one input again, kept

Each reader meets bytes (flipped bits, cut ends, spans repeated, zeroed, moved or inserted) and, where the file is or holds JSON, other
structure (types, lengths, depths). What is not a sentence of ours (`TocError` of exit 2 or 3) is a finding: an exception, more than
SECONDS, more than MEMORY, or the death of the process. Inputs run in children of a few hundred, so that a crash costs one batch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture_more import MORE, inspected, streamed, usable

SECONDS = 10
MEMORY = 1 << 30
BATCH = 200
Seed = Callable[[Path], Path]
Read = Callable[[Path], object]


# What is read, and how


def _codes(rows: int = 12, width: int = 4) -> Any:
    import torch

    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def _state() -> dict[str, Any]:
    import torch

    made = torch.Generator().manual_seed(1)
    return {
        "quantize.embedding.weight": _codes(),
        "quant_conv.weight": torch.randn(4, 6, 1, 1, generator=made),
        "quant_conv.bias": torch.randn(4, generator=made),
        "post_quant_conv.weight": torch.randn(6, 4, 1, 1, generator=made),
        "post_quant_conv.bias": torch.randn(6, generator=made),
    }


def safetensors_file(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(_state(), folder / "m.safetensors", metadata={"format": "pt"})
    return folder / "m.safetensors"


def torch_file(folder: Path) -> Path:
    import torch

    torch.save({"state_dict": _state(), "epoch": 3, "hparams": {"name": "x", "sizes": [1, 2]}}, folder / "m.pt")
    return folder / "m.pt"


def legacy_torch_file(folder: Path) -> Path:
    import torch

    torch.save(_state(), folder / "m.pth", _use_new_zipfile_serialization=False)
    return folder / "m.pth"


def pickled_arrays(folder: Path) -> Path:
    import pickle

    import numpy as np

    with open(folder / "m.pkl", "wb") as file:
        pickle.dump({"codebook": _codes().numpy(), "n": np.float64(3)}, file, protocol=2)
    return folder / "m.pkl"


def npz_file(folder: Path) -> Path:
    import numpy as np

    np.savez_compressed(folder / "m.npz", codebook=_codes().numpy(), other=np.arange(3))
    return folder / "m.npz"


def npy_file(folder: Path) -> Path:
    import numpy as np

    np.save(folder / "m.npy", _codes().numpy())
    return folder / "m.npy"


def h5_file(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "m.h5", "w") as file:
        for key, value in _state().items():
            file[key.replace(".", "/")] = value.numpy()
    return folder / "m.h5"


def faiss_index(folder: Path) -> Path:
    import faiss

    index = faiss.IndexPQ(8, 4, 3)
    index.train(_codes(400, 8).numpy())
    faiss.write_index(index, str(folder / "m.faiss"))
    return folder / "m.faiss"


def hf_folder(folder: Path) -> Path:
    safetensors_file(folder).rename(folder / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "VQModel", "latent_channels": 6, "num_vq_embeddings": 12, "vq_embed_dim": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def shard_index(folder: Path) -> Path:
    safetensors_file(folder).rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(_state(), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def _rows() -> Any:
    import numpy as np

    return np.random.default_rng(2).normal(size=(60, 6)).astype(np.float32)


def _optimized(folder: Path) -> Path:
    import numpy as np

    import toc_cli as toc

    np.save(folder / "x.npy", _rows())
    plan = toc.optimize(str(safetensors_file(folder)), str(folder / "x.npy"), keep=2, assume=True)
    plan.save(folder / "m.toc.safetensors")
    return folder


def artefact(folder: Path) -> Path:
    return _optimized(folder) / "m.toc.safetensors"


def record(folder: Path) -> Path:
    return _optimized(folder) / "m.toc.json"


def features_h5(folder: Path) -> Path:
    import h5py
    import numpy as np

    with h5py.File(folder / "f.h5", "w") as file:
        for clip in range(3):
            file.create_dataset(f"clip{clip}/audio", data=_rows(), chunks=(16, 6), compression="gzip", fletcher32=True)
        file["audio.tokens"] = np.zeros((60, 2), np.int32)
        file["label"] = np.arange(60) % 3
    return folder / "f.h5"


def features_npz(folder: Path) -> Path:
    import numpy as np

    np.savez_compressed(folder / "f.npz", audio=_rows(), video=_rows().reshape(6, 10, 6), label=np.arange(60))
    return folder / "f.npz"


def checks_toml(folder: Path) -> Path:
    (folder / "toc.toml").write_text(
        '[tool.toc.checks]\ntoken_agreement = ["error", {min = "95%"}]\nexcess_distortion = ["warn", {max = "baseline * 1.05"}]\n'
    )
    return folder / "toc.toml"


def train_config(folder: Path) -> Path:
    (folder / "c.toml").write_text(
        "[train]\nepochs = 3\nbatch_size = 8\nlr = 1e-3\n[model]\nwidth = 8\n[model.codebook]\nsize = 6\n"
    )
    return folder / "c.toml"


def inspected_folder(path: Path) -> object:
    return inspected(path.parent if path.name == "config.json" else path)


def reported(path: Path) -> object:
    from toc_cli.report import junit, markdown
    from toc_cli.report.assembly import assemble
    from toc_cli.report.reading import read_run

    report = assemble([read_run(path)])
    return markdown.render(report), junit.render(report)


def gated(path: Path) -> object:
    from toc_cli.report.config import from_config

    return from_config(path)


def configured(path: Path) -> object:
    from toc_cli.fcid.settings import read_settings
    from toc_cli.fcid.train_config import run_config

    return run_config(read_settings(path))


READERS: dict[str, tuple[Seed, Read]] = {
    "safetensors": (safetensors_file, inspected),
    "torch": (torch_file, inspected),
    "legacy-torch": (legacy_torch_file, inspected),
    "pickle": (pickled_arrays, inspected),
    "npz": (npz_file, inspected),
    "npy": (npy_file, inspected),
    "h5": (h5_file, inspected),
    "faiss": (faiss_index, inspected),
    "folder": (hf_folder, inspected_folder),
    "sharded": (shard_index, inspected),
    "artefact": (artefact, inspected),
    "record": (record, reported),
    "features-h5": (features_h5, streamed),
    "features-npz": (features_npz, streamed),
    "checks": (checks_toml, gated),
    "train-config": (train_config, configured),
    **MORE,
}


# How it is damaged


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Another file: one to four damages of bytes, or of the JSON that the file is or begins with."""
    if chance.random() < 0.5 and (found := _json_span(data)):
        start, stop = found
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(damaged(json.loads(data[start:stop]), chance)).encode("utf-8", "surrogatepass")
            head = len(text).to_bytes(8, "little") if start == 8 else data[:start]
            return head + text + data[stop:]
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        _damage(changed, chance)
    return bytes(changed)


def _json_span(data: bytes) -> tuple[int, int] | None:
    """Where the JSON of a file is: the whole of it, or the header of a safetensors file."""
    if data[:1] in (b"{", b"["):
        return 0, len(data)
    size = int.from_bytes(data[:8], "little")
    return (8, 8 + size) if data[8:9] == b"{" and size <= len(data) - 8 else None


def _damage(data: bytearray, chance: random.Random) -> None:
    if not data:
        data += chance.randbytes(chance.randint(1, 64))
        return
    # headers and indexes lie at the ends
    at = chance.choice(
        (
            chance.randrange(len(data)),
            chance.randrange(min(len(data), 256)),
            len(data) - 1 - chance.randrange(min(len(data), 256)),
        )
    )
    span = min(len(data) - at, 1 << chance.randrange(8))
    match chance.randrange(8):
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at : at + span] = chance.randbytes(span)
        case 2:
            del data[at:]
        case 3:
            del data[at : at + span]
        case 4:
            data[at:at] = data[at : at + span]
        case 5:
            data[at : at + span] = bytes(span)
        case 6:
            data[at : at + span] = b"\xff" * span
        case 7:
            there = chance.randrange(len(data))
            data[there : there + span] = data[at : at + span]


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -1e308, 2**31, 2**63, 10**40, 1e-320, "", "a" * 300, "\ud800", "\x1b[2J", "../../x", [], {}, [[]],
    {"a": {}}, [1, "a", None], "NaN", 0.5,
)  # fmt: skip


def damaged(value: Any, chance: random.Random) -> Any:
    """The same JSON with one place other: another type, another length, another depth, a key less or more."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        match chance.randrange(10):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, chance.choice(("x", "", key + "2", "__metadata__")): chance.choice(ODD)}
            case _:
                return {**value, key: damaged(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        match chance.randrange(6):
            case 0:
                return value[:at]
            case 1:
                return value + value
            case 2:
                return [*value, chance.choice(ODD)]
            case _:
                return [*value[:at], damaged(value[at], chance), *value[at + 1 :]]
    if isinstance(value, int | float) and chance.random() < 0.5:
        return chance.choice((value + 1, value - 1, -value, value * 2, value * 1000))
    if chance.random() < 0.05:
        deep: Any = value
        for _ in range(chance.choice((40, 400))):
            deep = [deep]
        return deep
    return chance.choice(ODD)


# The run


@dataclass(frozen=True)
class Finding:
    """An input that did not end as it should."""

    place: str
    """seed:reader:number, for --replay."""
    what: str

    @property
    def kind(self) -> str:
        """Findings of one kind have one cause, most likely."""
        return self.what.splitlines()[0]


class TookTooLong(BaseException):
    """The clock ran out; no `except Exception` of a library holds it."""


def _alarm(*_: object) -> None:
    raise TookTooLong


def attempt(read: Read, path: Path) -> str:
    """What is wrong with how one input ended; "" where nothing is."""
    from toc_cli.errors import TocError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            read(path)
    except TocError as error:
        if error.exit_code not in (2, 3):
            return f"exit {error.exit_code}: {error}"
        if not error.what.strip() or len(error.what) > 4000:
            return f"not a sentence: {error.what[:200]!r}"
    except TookTooLong:
        return f"more than {SECONDS} seconds"
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "toc_cli" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "?"
        return f"{where}: {type(error).__name__}: {str(error)[:160]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return f"{grown >> 20} MiB more memory" if grown > MEMORY else ""


def make(reader: str, seed: int, number: int, folder: Path, original: tuple[Path, bytes]) -> Path:
    """Input `number` of a reader, written over its valid file."""
    path, data = original
    chance = random.Random(f"{seed} {reader} {number}")
    path.write_bytes(mutated(data, chance))
    return path


def watched(child: int, told: Path) -> int:
    """The child's status at its end; one that has told nothing for three times an input's time is killed: a hang inside
    a library's own code holds the child's own alarm back.
    """
    size, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if (now := told.stat().st_size) != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > 3 * SECONDS:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.01)


def batch(reader: str, seed: int, numbers: range, folder: Path, until: float) -> tuple[int, list[Finding]]:
    """Inputs in a child of their own: how many ran, and what was found; the death of the child is a finding of its last input."""
    told = folder / "told"
    told.write_text("")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, _alarm)
            seeded, read = READERS[reader]
            home = folder / "files"
            home.mkdir()
            path = seeded(home)
            data = path.read_bytes()
            with open(told, "a", buffering=1) as out:
                for number in numbers:
                    if time.monotonic() > until:
                        break
                    out.write(json.dumps({"at": number}) + "\n")
                    if what := attempt(read, make(reader, seed, number, home, (path, data))):
                        out.write(json.dumps({"found": number, "what": what}) + "\n")
            code = 0
        finally:
            os._exit(code)
    status = watched(child, told)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    ran = [line["at"] for line in lines if "at" in line]
    found = [Finding(f"{seed}:{reader}:{line['found']}", line["what"]) for line in lines if "found" in line]
    if (code := os.waitstatus_to_exitcode(status)) != 0:
        at = ran[-1] if ran else -1
        how = (
            "hung where no signal reaches it"
            if code == -signal.SIGKILL
            else signal.Signals(-code).name
            if code < 0
            else code
        )
        found.append(Finding(f"{seed}:{reader}:{at}", f"the process died: {how}"))
    return len(ran), found


def torture(
    readers: list[str], seed: int, *, seconds: float = float("inf"), count: int | None = None
) -> Iterator[tuple[str, int, list[Finding]]]:
    """Batches of every reader in turn, until the time is over or each had its count."""
    until = time.monotonic() + seconds
    done = dict.fromkeys(readers, 0)
    while time.monotonic() < until and any(count is None or done[reader] < count for reader in readers):
        for reader in readers:
            left = BATCH if count is None else min(BATCH, count - done[reader])
            if left <= 0 or time.monotonic() >= until:
                continue
            share = until if count is not None else min(until, time.monotonic() + seconds / len(readers))
            with tempfile.TemporaryDirectory() as folder:
                ran, found = batch(reader, seed, range(done[reader], done[reader] + left), Path(folder), share)
            if found and found[-1].what.startswith("the process died"):
                done[reader] = int(found[-1].place.rpartition(":")[2]) + 1
            else:
                done[reader] += left
            yield reader, ran, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, help="inputs of each reader, whatever the time")
    parser.add_argument("--seed", type=int, default=int(time.time()) // 86400)
    parser.add_argument("--reader", action="append", choices=sorted(READERS))
    parser.add_argument("--replay", metavar="SEED:READER:NUMBER")
    parser.add_argument("--keep", type=Path, help="with --replay: where the input is kept")
    chosen = parser.parse_args()
    import toc_cli.pipeline
    import toc_cli.report.assembly  # noqa: F401

    if chosen.replay:
        seed, reader, number = chosen.replay.split(":")
        home = chosen.keep or Path(tempfile.mkdtemp())
        home.mkdir(exist_ok=True, parents=True)
        path = READERS[reader][0](home)
        make(reader, int(seed), int(number), home, (path, path.read_bytes()))
        print(path)
        READERS[reader][1](path)
        return 0
    totals: dict[str, int] = {}
    kinds: dict[str, list[Finding]] = {}
    limits = {"count": chosen.count} if chosen.count else {"seconds": chosen.seconds}
    for reader, ran, found in torture(
        chosen.reader or [name for name in READERS if usable(name)], chosen.seed, **limits
    ):
        totals[reader] = totals.get(reader, 0) + ran
        for finding in found:
            kinds.setdefault(f"{reader}: {finding.kind}", []).append(finding)
    print(
        f"seed {chosen.seed}: {sum(totals.values()):,} inputs; "
        + ", ".join(f"{name} {n:,}" for name, n in totals.items())
    )
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(found):5} {kind}  (--replay {found[0].place})")
    print(f"{sum(map(len, kinds.values()))} findings of {len(kinds)} kinds")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
