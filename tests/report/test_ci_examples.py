"""The files of examples/ci are run, not only read: their commands, on the bundled demo data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML reads the examples")

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(["bash", "-ec", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a checkpoint, features and the bounds of the example."""
    folder = tmp_path_factory.mktemp("project")
    for source, target in (("digits_vq.safetensors", "model.safetensors"), ("digits_features.h5", "feats.h5")):
        (folder / target).write_bytes(files("toc_cli.demo").joinpath(source).read_bytes())
    shutil.copy(EXAMPLES / "toc.toml", folder)
    shutil.copy(EXAMPLES / "compare.sh", folder)
    return folder


def test_workflow_and_pre_commit(project: Path) -> None:
    steps: list[dict[str, Any]] = yaml.safe_load((EXAMPLES / "github-workflow.yml").read_text())["jobs"]["gate"][
        "steps"
    ]
    commands = {step["name"]: step["run"] for step in steps if "name" in step}
    assert list(commands) == ["Prune", "Gate", "Summary"]

    pruned = run(commands["Prune"], project)
    assert pruned.returncode == 0, pruned.stderr
    first = run("toc report model.toc.json --baseline baseline.toc.json --update-baseline --quiet", project)
    assert first.returncode == 0, first.stderr

    gate = run(commands["Gate"], project)
    assert gate.returncode == 0, gate.stderr
    *findings, bounds = gate.stdout.splitlines()
    assert all(line.startswith(("::warning ", "::notice title=toc reading::")) for line in findings), findings
    assert bounds.startswith("::notice title=toc bounds::5 bounds (1 from the command line, 4 from toc.toml")
    assert "of the same checkpoint and features" in bounds
    assert xml.parse(project / "checks.xml").getroot().get("tests") == "5"
    assert (project / "report.html").read_text().startswith("<!doctype html>")

    summary = project / "summary.md"
    summary.write_text("# earlier steps\n")
    done = run(commands["Summary"], project, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 0, done.stderr
    assert summary.read_text().startswith("# earlier steps\n## ⚠️ Ship with care")

    hook = yaml.safe_load((EXAMPLES / "pre-commit-config.yaml").read_text())["repos"][0]["hooks"][0]
    entry = f"{hook['entry']} model.toc.json baseline.toc.json"
    committed = run(entry, project)
    assert (committed.returncode, committed.stdout) == (0, ""), committed.stderr
    strict = project / "strict"
    strict.mkdir()
    for name in ("model.toc.json", "baseline.toc.json"):
        shutil.copy(project / name, strict)
    (strict / "toc.toml").write_text('[tool.toc.checks]\ntoken_agreement = ["error", {min = 0.9999}]\n')
    refused = run(entry, strict)
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "error: 2 checks fail: model.toc.json, codebook 0 quantize.embedding.weight: token_agreement is "
    )


def test_compare(project: Path) -> None:
    done = run("./compare.sh", project)
    assert done.returncode == 0, done.stderr
    page = (project / "compare.html").read_text()
    assert "Against the baseline chance.toc.json" in page
