"""Habits of a shell: help that fits, words of others, defaults of the project, completion, and places that are none of ours."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cli import SCRIPT, make_checkpoint, make_features, toc
from toc_cli.commands.help import GROUPS
from toc_cli.commands.log import hoist


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("habits")
    make_checkpoint(folder / "model.safetensors")
    make_features(folder / "feats.h5")
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    return folder


RUN = ("optimize", "model.safetensors", "--features", "feats.h5", "--force")


def test_bare_toc_shows_help_that_is_not_cut_off() -> None:
    bare = toc()
    assert bare.code == 0
    assert bare.out == toc("--help").out
    assert "..." not in bare.out.partition("Commands:")[2]
    assert all(len(line) <= 80 for line in bare.out.splitlines())


def test_the_options_of_optimize_stand_in_groups() -> None:
    text = toc("optimize", "--help").out
    places = [text.index(f"\n{title}:\n") for title in ("Arguments", *GROUPS)]
    assert places == sorted(places)
    assert text.index("\nChoice:\n") < text.index("--keep") < text.index("\nOutput:\n") < text.index("--emit")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("prune",), 2, "There is no command 'prune'.\nDid you mean toc optimize?"),
        (("optimze", "x"), 2, "Did you mean toc optimize?"),
        (("xyzzy",), 2, "No such command 'xyzzy'\nSee "),
        ((*RUN, "--kep", "3"), 2, "--keep"),
        ((*RUN, "--criterion", "varience"), 2, "Did you mean variance?"),
        ((*RUN, "--emit", "codebook,slice"), 2, "--emit 'slice' is unknown.\nDid you mean sliced?"),
        (("inspect", "-"), 2, "Standard input cannot be read here"),
        ((*RUN[:3], "-"), 2, "files are read more than once"),
        ((*RUN[:3], "rows.csv"), 3, "rows.csv is comma-separated text, which toc does not read as features.\nSave the rows as .npy"),
        ((*RUN[:3], "x=https://host/feats.h5"), 2, "is an address (https:), and toc reads files.\nDownload it"),
        (("inspect", "huggingface://org/model"), 2, "A hub name is written ORGANISATION/NAME"),
        (("--log-level", "loud", "inspect", "model.safetensors"), 2, "loud"),
    ],
)  # fmt: skip
def test_a_mistake_gets_its_sentence(here: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = toc(*words, cwd=here)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert len(done.err.strip().splitlines()) <= 2


@pytest.mark.skipif(os.name == "nt", reason="there it is a path")
def test_a_path_of_windows_elsewhere(here: Path) -> None:
    assert "is a path of Windows" in toc("inspect", "C:\\models\\vq.pt", cwd=here).err


def test_modes_with_commas_and_words_in_any_case(here: Path) -> None:
    done = toc(*RUN, "--emit", "codebook,Masked", "--criterion", "TOC", "--keep", "12", "--json", cwd=here)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert [output["mode"] for output in record["outputs"]] == ["codebook", "masked"]
    assert record["options"]["criterion"] == "toc"
    assert record["options"]["settings"] is None
    assert "--keep 12 is a count: 12 of 24 dimensions; a share would be --keep 12%." in done.err


def test_defaults_of_the_project_stand_in_the_record(here: Path) -> None:
    table = '[tool.toc.optimize]\nkeep = 0.25\nmax-memory = "64MiB"\nmodality = ["x"]\ncriterion = "variance"\nassume = false\n'
    (here / "toc.toml").write_text(table)
    try:
        done = toc(*RUN, "--criterion", "toc", "--json", "-q", cwd=here)
        assert done.code == 0, done.err
        options = json.loads(done.out)["options"]
        assert (options["keep"], options["criterion"], options["modalities"]) == ("0.25", "toc", ["x"])
        assert options["settings"] == "toc.toml: assume, keep, max_memory, modality"
        for wrong, said in (
            ("kep = 1", "sets 'kep', which is no default that it can set.\nDid you mean keep?"),
            ("force = true", "sets 'force'"),
            ("keep = true", "keep = True in [tool.toc.optimize] cannot be meant"),
            ("[tool.toc.optimize.keep]\na = 1", "is a table"),
        ):
            (here / "toc.toml").write_text(f"[tool.toc.optimize]\n{wrong}\n")
            found = toc(*RUN, cwd=here)
            assert found.code == 2
            assert said in found.err
    finally:
        (here / "toc.toml").unlink()


def test_v_may_stand_anywhere() -> None:
    assert hoist(["optimize", "-v", "x", "--log-level", "debug"]) == ["-v", "--log-level", "debug", "optimize", "x"]
    assert hoist(["optimize", "--", "-v"]) == ["optimize", "--", "-v"]


def test_v_says_what_is_done(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOC_NATIVE", "0")
    done = subprocess.run([SCRIPT, *RUN, "-v"], cwd=here, capture_output=True, text=True, check=True)
    assert done.stderr.count("The compiled search does not run: TOC_NATIVE=0 is set.") == 1
    assert "toc: counting code usage: 400 rows in " in done.stderr


@pytest.mark.skipif(not SCRIPT.exists(), reason="there is no console script beside the interpreter")
@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("bash", {"COMP_WORDS": "toc op", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "toc op"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "toc op", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_completion(shell: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [SCRIPT],
        env=os.environ | environment | {"_TOC_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "optimize" in done.stdout
    assert "inspect" not in done.stdout
    assert done.stderr == ""
