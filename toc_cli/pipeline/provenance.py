"""What a run read, by name and SHA-256: hashed beside the work, the files shared out over the ranks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from toc_cli.io.atomic import sha256
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.features import Features
from toc_cli.pipeline.ranks import Ranks

MOST_NAMED = 32
"""Feature files that the record names one by one; more are one entry."""


def hash_inputs(ckpt: Checkpoint, features: Features, ranks: Ranks) -> Future[dict[int, dict[str, Any]]]:
    """By place among the inputs, the entry of each file that is this rank's to hash; names without folders.
    InputError, as its exception, where a file is gone."""
    files = [("config" if path.name.endswith("config.json") else "checkpoint", path) for path in ckpt.files]
    files += [("features", path) for path in features.files]
    executor = ThreadPoolExecutor(1, thread_name_prefix="sha256")

    def hashed() -> dict[int, dict[str, Any]]:
        try:
            return {
                at: {"role": role, "name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
                for at, (role, path) in enumerate(files)
                if at % ranks.world == ranks.rank
            }
        except FileNotFoundError:
            ckpt.refuse_changes()
            features.refuse_changes()
            raise

    future = executor.submit(hashed)
    executor.shutdown(wait=False)
    return future


def inputs_of(shares: Sequence[Mapping[int, dict[str, Any]]], features: Features) -> list[dict[str, Any]]:
    """The record's `inputs` from what every rank hashed: in order; more than MOST_NAMED feature files are one entry, whose
    SHA-256 is that of the lines `<sha256>  <name>` that `sha256sum` prints in the folder that holds them all."""
    by_place = {at: entry for share in shares for at, entry in share.items()}
    entries = [by_place[at] for at in sorted(by_place)]
    given = [entry for entry in entries if entry["role"] == "features"]
    if len(given) <= MOST_NAMED:
        return entries
    folder = Path(os.path.commonpath([path.absolute().parent for path in features.files]))
    names = [path.absolute().relative_to(folder).as_posix() for path in features.files]
    lines = "".join(f"{entry['sha256']}  {name}\n" for entry, name in zip(given, names, strict=True))
    joined = {
        "role": "features", "name": folder.name, "files": len(given), "bytes": sum(entry["bytes"] for entry in given),
        "sha256": hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest(),
    }  # fmt: skip
    return [*(entry for entry in entries if entry["role"] != "features"), joined]
