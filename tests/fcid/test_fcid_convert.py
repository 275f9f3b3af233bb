"""Published checkpoints load wherever their modules were nested; what is missing or ambiguous is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fcid.golden_case import Case, cases
from toc_cli.errors import InputError
from toc_cli.fcid.convert import BUFFERS, convert_published
from toc_cli.fcid.run_folder import load_model


@pytest.fixture(scope="module")
def case(golden_dir: Path) -> Case:
    return cases(golden_dir, "c06_fcid_forward_*")[0]


@pytest.fixture(scope="module")
def state(case: Case) -> dict[str, Tensor]:
    return case.generated() | {f"Encoder.quantizer.{name}": case[f"state0.{name}"] for name in BUFFERS}


def test_prefixes_do_not_matter(state: dict[str, Tensor]) -> None:
    plain = convert_published(state)
    nested = convert_published({f"saved.{n.replace('Encoder.', 'Encoder_parameters.')}": t for n, t in state.items()})
    assert plain.fresh == nested.fresh == []
    ours = plain.model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in nested.model.state_dict().items())
    assert ours["codebook.coarse.embedding"].dtype == torch.float64
    assert plain.model.config.profile == "published"


def test_an_encoder_alone(state: dict[str, Tensor]) -> None:
    """As the published code saves it: the rest keeps its initial weights, and is named."""
    alone = {n.removeprefix("Encoder."): t for n, t in state.items() if n.startswith("Encoder.")}
    found = convert_published(alone)
    assert {name.split(".")[0] for name in found.fresh} == {"cpc", "decoder", "mi"}
    x = torch.zeros(2, 10, 16, dtype=torch.float64)
    codes = [convert_published(s).model.eval().encode("audio", x).fine_codes for s in (state, alone)]
    assert torch.equal(*codes)


def test_template_layers_are_left_behind(state: dict[str, Tensor]) -> None:
    unused = convert_published(state).unused
    assert all(".encoder_layer." in name or "ave" in name or "affine_video_self" in name for name in unused)
    assert sum(".encoder_layer." in name for name in unused) == 3 * 12


def test_what_does_not_fit(state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="No encoder of the published"):
        convert_published({"layer.weight": torch.zeros(2, 2)})
    without = {n: t for n, t in state.items() if "quantizer" not in n}
    with pytest.raises(InputError, match="one EMA codebook; found none"):
        convert_published(without)
    twice = state | {f"Encoder.other.{name}": state[f"Encoder.quantizer.{name}"] for name in BUFFERS}
    with pytest.raises(InputError, match=r"Encoder\.quantizer, Encoder\.other"):
        convert_published(twice)
    assert convert_published(twice, codebook="Encoder.other").fresh == []
    cut = state | {"Encoder.va2vat.linear.weight": torch.zeros(3, 256)}
    with pytest.raises(InputError, match=r"va2vat.linear.weight has the shape \(3, 256\)"):
        convert_published(cut)


def test_the_example_makes_a_run_of_a_checkpoint(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(
        {"Encoder_parameters": {n.removeprefix("Encoder."): t for n, t in state.items()}}, tmp_path / "published.pt"
    )
    program = Path(__file__).parents[2] / "examples" / "convert_published.py"
    command = [sys.executable, str(program), "checkpoint", str(tmp_path / "published.pt"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model, config = load_model(tmp_path / "run")
    assert config.train.precision == "float64"
    ours = convert_published({n.removeprefix("Encoder."): t for n, t in state.items()}).model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items())
