"""What a running model hands to its quantiser ends up in a file that `toc optimize` reads."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from toc_cli.errors import InputError, OutputError, UsageError
from toc_cli.io.capture import capture
from toc_cli.io.features import open_features


class Quantizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return self.codes[torch.cdist(x, self.codes).argmin(-1)]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8))
        self.quantizer = Quantizer()
        self.decoder = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.quantizer(self.encoder(x)))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_batches_are_appended_as_they_reach_the_module(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    batches = [torch.randn(n, 3, 5) for n in (4, 1, 7)]
    with capture(model.quantizer, path) as recorder:
        for batch in batches:
            model(batch).sum().backward()
        assert not path.exists()
    assert recorder.rows == {"features": 12}
    assert list(tmp_path.iterdir()) == [path]
    model(batches[0])
    expected = model.encoder(torch.cat(batches)).detach().numpy()
    (dataset,) = open_features(path).select({8})
    assert dataset.shape == (12, 3, 8)
    (_, rows), = dataset.blocks()  # fmt: skip
    np.testing.assert_allclose(rows, expected.reshape(-1, 8), rtol=1e-5, atol=1e-6)


def test_several_modules_outputs_and_dtypes(model: Model, tmp_path: Path) -> None:
    x = torch.randn(6, 5)
    with capture({"before": model.quantizer, "after": model.decoder}, tmp_path / "in.h5", dtype="float16"):
        model(x)
    with capture(model.encoder, tmp_path / "out.h5", output=True, dtype="float64"):
        model(x)
    with h5py.File(tmp_path / "in.h5") as inputs, h5py.File(tmp_path / "out.h5") as outputs:
        assert (inputs["before"].dtype, outputs["features"].dtype) == (np.float16, np.float64)
        assert np.array_equal(inputs["before"][()], outputs["features"][()].astype("f2"))
        codes = model.quantizer.codes.detach().numpy().astype("f2")
        assert all(any(np.array_equal(row, code) for code in codes) for row in inputs["after"][()])


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    """1 + 2**-11 + 2**-40 lies just above the middle of two halves; float32 on the way makes it the middle, which goes down."""
    x = torch.tensor([[1 + 2**-11 + 2**-40, 1 + 2**-11, -(1 + 2**-11 + 2**-40)]], dtype=torch.float64)
    module = nn.Identity()
    with capture(module, tmp_path / "x.h5", dtype="float16"):
        module(x)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["features"][()].tolist() == [[1 + 2**-10, 1.0, -(1 + 2**-10)]]


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    module = nn.Identity()
    with (
        pytest.raises(InputError, match="reaches 1e\\+05, which float16 cannot hold"),
        capture(module, tmp_path / "x.h5", dtype="float16"),
    ):
        module(torch.tensor([[1.0, 1e5]]))
    assert not list(tmp_path.iterdir())


def test_half_precision_is_recorded_exactly(tmp_path: Path) -> None:
    module, x = nn.Identity(), torch.randn(4, 8, dtype=torch.bfloat16)
    with capture(module, tmp_path / "x.h5"):
        module(x)
    with h5py.File(tmp_path / "x.h5") as file:
        assert torch.equal(torch.from_numpy(file["features"][()]), x.float())


def test_the_argument_can_be_named_or_counted(tmp_path: Path) -> None:
    quantizer, x = Quantizer(), torch.randn(4, 8)
    for argument, call in {
        0: lambda: quantizer(x=x),
        "x": lambda: quantizer(scale=None, x=x),
        1: lambda: quantizer(torch.zeros(4, 8), x),
    }.items():
        with capture(quantizer, tmp_path / f"{argument}.h5", argument=argument):
            call()
        with h5py.File(tmp_path / f"{argument}.h5") as file:
            assert np.array_equal(file["features"][()], x.numpy())


def test_lengths_that_vary_are_recorded_as_rows(tmp_path: Path) -> None:
    module, path = nn.Identity(), tmp_path / "x.h5"
    batches = [torch.randn(2, 8, length) for length in (5, 3)]

    def run(**options: int) -> None:
        with capture(module, path, **options):  # type: ignore[arg-type]
            for batch in batches:
                module(batch)

    with pytest.raises(InputError, match=r"got \(8, 3\) after \(8, 5\).*channel_axis"):
        run()
    assert not list(tmp_path.iterdir())
    run(channel_axis=1)
    with h5py.File(path) as file:
        expected = np.concatenate([batch.movedim(1, -1).reshape(-1, 8).numpy() for batch in batches])
        assert np.array_equal(file["features"][()], expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, FileNotFoundError, RuntimeError])
def test_a_failing_model_leaves_no_file_no_hook_and_its_own_error(
    model: Model, tmp_path: Path, error: type[BaseException]
) -> None:
    def run() -> None:
        with capture(model.quantizer, tmp_path / "x.h5"):
            model(torch.randn(2, 5))
            raise error

    with pytest.raises(error):
        run()
    assert not list(tmp_path.iterdir())
    assert not {"forward", "encode"} & set(model.quantizer.__dict__)


def test_what_cannot_be_recorded_is_said(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"

    def run(*, argument: int | str = 0, called: bool = True, dtype: str = "float32", to: Path = path) -> None:
        with capture(model.quantizer, to, argument=argument, dtype=dtype):
            if called:
                model(torch.randn(2, 5))

    with pytest.raises(InputError, match="Nothing reached features in this block; no file is written"):
        run(called=False)
    with pytest.raises(InputError, match=r"is nothing, not a tensor.*argument=1"):
        run(argument=3)
    with pytest.raises(UsageError, match="'bfloat16' is none of"):
        run(dtype="bfloat16")
    with pytest.raises(OutputError, match="could not be written"):
        run(to=tmp_path / "no" / "x.h5")
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        run()
    assert path.read_text() == "mine"


def test_equal_runs_write_equal_bytes(model: Model, tmp_path: Path) -> None:
    x = torch.randn(6, 5)
    for name in ("a.h5", "b.h5"):
        with capture(model.quantizer, tmp_path / name):
            model(x)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_real_quantiser_is_recorded(tmp_path: Path) -> None:
    library = pytest.importorskip(
        "vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed (test-libs)"
    )
    torch.manual_seed(0)
    module, x = library.VectorQuantize(dim=16, codebook_size=32), torch.randn(3, 10, 16)
    with capture(module, tmp_path / "x.h5"):
        module(x)
    (dataset,) = open_features(tmp_path / "x.h5").select({16})
    (_, rows), = dataset.blocks()  # fmt: skip
    assert np.array_equal(rows, x.reshape(-1, 16).numpy())
