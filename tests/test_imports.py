"""The directions of imports: they point down only, and the front door stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli import make_checkpoint, make_features, toc

PACKAGE = Path(__file__).resolve().parent.parent / "toc_cli"
MAY_IMPORT = {
    "errors": set(),
    "lazy": set(),
    "ops": {"errors", "ops"},
    "io": {"errors", "io"},
    "libraries": {"errors", "io", "media", "libraries"},
    "media": {"errors", "io", "media"},
    "fcid": {"errors", "ops", "io", "fcid", "__init__"},
    "pipeline": {"errors", "lazy", "ops", "io", "media", "libraries", "pipeline", "__init__"},
    "report": {"errors", "lazy", "io", "report", "__init__"},
    "demo": {"errors", "ops", "io", "pipeline", "report", "fcid", "demo"},
    "bench": {"errors", "ops", "io", "pipeline", "fcid", "bench"},
    "commands": {
        "media",
        "errors",
        "ops",
        "io",
        "pipeline",
        "report",
        "fcid",
        "demo",
        "bench",
        "libraries",
        "commands",
        "__init__",
    },
    "api": {"errors", "ops", "io", "pipeline", "report"},
    "__init__": {"api", "io", "lazy"},
    "__main__": {"commands"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports, at the top or inside functions."""
    package = ("toc_cli", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            modules = [(*base, *(node.module or "").split("."))] if node.module else [base]
            if modules[0] == ("toc_cli",):
                modules = [("toc_cli", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {parts[1] if (PACKAGE / parts[1]).exists() or (PACKAGE / f"{parts[1]}.py").exists() else "__init__"
                  for parts in modules if parts[0] == "toc_cli" and len(parts) > 1}  # fmt: skip
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    above = imported_rooms(path) - MAY_IMPORT[room(path)]
    assert not above, f"{path.relative_to(PACKAGE)} reaches up to {sorted(above)}"


def imports(arguments: list[str]) -> set[str]:
    """Which of the heavy libraries a command imports."""
    code = (
        "import sys\n"
        "from toc_cli.commands import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code in (0, None), stop.code\n"
        "print('imported', *{'torch', 'h5py', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["optimize", "--help"]], ids=" ".join)
def test_help_imports_neither_torch_nor_h5py(arguments: list[str]) -> None:
    assert not imports(arguments)


def test_headers_and_records_are_read_without_torch(tmp_path: Path) -> None:
    """`toc inspect FILE` and `toc report` start in the time of Python, typer and rich."""
    model, pickled = make_checkpoint(tmp_path / "m.safetensors"), tmp_path / "m.pt"
    make_features(tmp_path / "feats.h5")
    torch.save(load_file(model), pickled)
    assert toc("optimize", model, "--features", tmp_path / "feats.h5", "-q").code == 0
    assert not imports(["inspect", str(model)])
    assert not imports(["report", str(tmp_path / "m.toc.json")])
    assert imports(["inspect", str(pickled)]) <= {"numpy"}
