"""Models by their name on the Hugging Face hub: `org/name` or `hf://org/name@revision/file`; of a data set
`hf://datasets/org/name@revision/file`.

The local cache comes first; the network is asked only for what a name asks and no cache holds. `huggingface_hub` does both,
and obeys its own variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toc_cli.errors import InputError, missing_extra
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.config import read_json
from toc_cli.io.checkpoint.folder import USUAL, Folder
from toc_cli.io.checkpoint.safetensors import TYPES
from toc_cli.io.containers import checkpoint_suffixes, container_of
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

SCHEME = "hf:"
DATASETS = "datasets/"
PART = r"[A-Za-z0-9][\w.-]*"
NAMED = re.compile(rf"(?P<repo>{PART}/{PART})(?:@(?P<revision>[^/@]+))?(?:/(?P<file>.+))?")


@dataclass(frozen=True)
class HubName:
    """A model or a data set on the hub, or one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None
    kind: Literal["model", "dataset"] = "model"

    @property
    def address(self) -> str:
        """Of the whole, at any revision."""
        return f"hf://{DATASETS if self.kind == 'dataset' else ''}{self.repo}"

    @property
    def shown(self) -> str:
        """As the user could type it."""
        at = f"@{printable(self.revision)}" if self.revision else ""
        return f"{self.address}{at}" + (f"/{printable(self.file)}" if self.file else "")


def hub_name(path: str | Path) -> HubName | None:
    """What a name on the command line means on the hub: anything that begins with `hf://`, and `org/name` where no file or
    folder of that name (nor a folder `org`) is here. InputError for `hf://` with no such name behind it."""
    text = str(path)
    explicit = text.startswith(SCHEME)
    rest = text.removeprefix(SCHEME).lstrip("/") if explicit else text
    of_data = explicit and rest.startswith(DATASETS)
    match = NAMED.fullmatch(rest.removeprefix(DATASETS) if of_data else rest)
    if match is None or ".." in text.split("/"):
        if explicit:
            raise InputError(
                f"{printable(text)} is no name on the hub.", "Write hf://org/name, or hf://org/name@rev/file."
            )
        return None
    if not explicit and (match["file"] or os.path.lexists(path) or os.path.isdir(match["repo"].partition("/")[0])):
        return None
    if not explicit and Path(text).suffix in checkpoint_suffixes():
        return None
    return HubName(match["repo"], match["revision"], match["file"], "dataset" if of_data else "model")


def here(path: Path) -> Path:
    """The local path of a checkpoint: itself, or where the hub's file or folder lies, downloaded if no cache holds it."""
    named = hub_name(path)
    return path if named is None else _local(named)


def file_here(text: str) -> Path:
    """The local path of the file that `hf://…` names, downloaded if no cache holds it. InputError for a name without a file."""
    named = hub_name(text)
    if named is None or not named.file:
        shown = printable(text) if named is None else named.shown
        raise InputError(f"{shown} names no file.", "Name one: hf://org/name/FILE, or hf://datasets/org/name/FILE.")
    return _local(named)


def open_named(named: HubName) -> Checkpoint:
    """The listing of a model on the hub: from the cache, else of safetensors by their headers alone (range requests);
    other containers are downloaded. A tensor that is asked for is downloaded with its file."""
    hub = _library(named)
    cached = _cached(hub, named)
    if cached is not None:
        return container_of(cached).open_checkpoint(cached)
    with _told(named):
        files = _files(hub, named)
        wanted = [named.file] if named.file else _weights(named, files)
        if all(name.endswith((".safetensors", ".safetensors.index.json")) for name in wanted):
            return HubSafetensors(named, wanted, "config.json" in files)
    local = _local(named)
    return container_of(local).open_checkpoint(local)


class HubSafetensors(Checkpoint):
    """safetensors of the hub, listed without downloading them."""

    container = "safetensors"

    def __init__(self, named: HubName, wanted: list[str], configured: bool) -> None:
        super().__init__(Path(named.repo.rpartition("/")[2]))
        self._named, hub = named, _library(named)
        self._local: Checkpoint | None = None
        if wanted[0].endswith(".index.json"):
            index = read_json(Path(_download(hub, named, wanted[0])))
            wanted = _shards(index)
            self.container = "sharded safetensors"
        for name in wanted:
            header = hub.HfApi().parse_safetensors_file_metadata(
                named.repo, name, repo_type=named.kind, revision=named.revision
            )
            for key, tensor in header.tensors.items():
                if tensor.dtype in TYPES:
                    self.infos[key] = TensorInfo((), key, _shape(tensor.shape), TYPES[tensor.dtype])
            self.values |= {(key,): value for key, value in header.metadata.items()}
        self.read_only = "A model on the hub is read, not written: optimize downloads it first."
        if not named.file and configured:
            self.config = read_json(Path(_download(hub, named, "config.json")))

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        if self._local is None:
            path = _local(self._named)
            self._local = container_of(path).open_checkpoint(path)
        return self._local.get(key)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        return []


def _shards(index: Mapping[str, Any]) -> list[str]:
    """The files that an index of shards names."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError("The hub holds an index of shards without a weight_map.")
    return sorted({str(name) for name in shards.values()})


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise InputError("The hub holds a broken safetensors header.")
    return tuple(shape)


def _library(named: HubName) -> Any:
    """huggingface_hub. InputError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        extra = missing_extra("huggingface_hub", "hub").hint
        raise InputError(
            f"{named.shown} is no file or folder here, and to ask the hub needs huggingface_hub, which is not installed.",
            extra,
        ) from None
    return huggingface_hub


def _cached(hub: Any, named: HubName) -> Path | None:
    """Where the cache holds what is named; None where it does not, or not all of it."""
    if named.file:
        found = hub.try_to_load_from_cache(named.repo, named.file, revision=named.revision, repo_type=named.kind)
        return Path(found) if isinstance(found, str) else None
    try:
        found = hub.snapshot_download(named.repo, repo_type=named.kind, revision=named.revision, local_files_only=True)
        folder = Path(found)
        Folder(folder)
    except (OSError, ValueError, InputError):
        return None
    return folder


def _local(named: HubName) -> Path:
    hub = _library(named)
    cached = _cached(hub, named)
    if cached is not None:
        return cached
    with _told(named):
        files = _files(hub, named)
        if named.file:
            return Path(_download(hub, named, named.file))
        wanted = _weights(named, files)
        if wanted[0].endswith(".index.json"):
            wanted += _shards(read_json(Path(_download(hub, named, wanted[0]))))
        if "config.json" in files:
            wanted.append("config.json")
        places = [Path(_download(hub, named, name)) for name in wanted]
        return places[0].parent


def _weights(named: HubName, files: list[str]) -> list[str]:
    """The file (or index) with the weights of a model. InputError where there are several and none of a usual name."""
    usual = next((name for name in USUAL if name in files), None)
    if usual:
        return [usual]
    found = [name for name in files if "/" not in name and Path(name).suffix in checkpoint_suffixes() - {".txt"}]
    if len(found) == 1:
        return found
    some = ", ".join(printable(name, 60) for name in (found or files)[:5])
    what = f"holds {len(found)} weights files" if found else "holds no weights at its top"
    raise InputError(f"{named.shown} {what} ({some}).", f"Name one: {named.address}/FILE.")


def _files(hub: Any, named: HubName) -> list[str]:
    """By one request, which also finds out whether there is a network: every other call asks five times, in 23 seconds."""
    about = hub.HfApi().repo_info(named.repo, revision=named.revision, repo_type=named.kind)
    return [file.rfilename for file in about.siblings or []]


def _download(hub: Any, named: HubName, name: str) -> str:
    found: str = hub.hf_hub_download(named.repo, name, revision=named.revision, repo_type=named.kind)
    return found


@contextmanager
def _told(named: HubName) -> Iterator[None]:
    """Errors of the library and of the network as sentences."""
    import huggingface_hub.errors as errors

    kinds: Mapping[str, str] = {
        "GatedRepoError": "asks for an agreement or a token before it is read",
        "RepositoryNotFoundError": "is not on the hub, or needs a token",
        "RevisionNotFoundError": "has no such revision",
        "EntryNotFoundError": "has no such file",
        "RemoteEntryNotFoundError": "has no such file",
    }
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library passes on whatever its transport raises
        names = [kind.__name__ for kind in type(error).__mro__]
        for kind, what in kinds.items():
            if kind in names and "LocalEntryNotFoundError" not in names:
                hint = "Log in with `hf auth login` where the model is private." if "token" in what else ""
                raise InputError(f"{named.shown} {what}.", hint) from None
        offline = isinstance(error, errors.OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE", "") not in (
            "",
            "0",
        )
        of_data = " --repo-type dataset" if named.kind == "dataset" else ""
        why = "HF_HUB_OFFLINE is set" if offline else printable(str(error).partition("\n")[0] or type(error).__name__)
        raise InputError(
            f"{named.shown} is not in the local cache, and the hub cannot be asked: {why}.",
            f"Get it where there is a network (hf download {named.repo}{of_data}), or name a local file.",
        ) from None
