"""Readings that tokens prove, answer, or contradict; and those that figures decide."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli import toc
from toc_cli.io.stamps import Stamps

N = 600


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x.double(), codes.double()).argmin(1)


def cosine(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (
        torch.nn.functional.normalize(x.double(), dim=1) @ torch.nn.functional.normalize(codes.double(), dim=1).T
    ).argmax(1)


def near(codes: torch.Tensor, noise: float = 0.3, rows: int = N, seed: int = 7) -> torch.Tensor:
    """Features about codes of their own."""
    drawn = torch.Generator().manual_seed(seed)
    picked = codes[torch.randint(0, len(codes), (rows,), generator=drawn)]
    return picked + noise * torch.randn(picked.shape, generator=drawn)


def write(
    folder: Path, tensors: dict[str, torch.Tensor], x: torch.Tensor, tokens: torch.Tensor | None, **stamps: object
) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "m.safetensors")
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = x.numpy()
        Stamps(**stamps).write(file["x"].attrs)  # type: ignore[arg-type]
        if tokens is not None:
            file["x.tokens"] = tokens.numpy()


def quantize(folder: Path, *flags: str) -> tuple[int, str]:
    done = toc("quantize", "x.h5", "--codebook", "m.safetensors", "-o", "t.h5", "--force", "-q", *flags, cwd=folder)
    return done.code, " ".join(done.err.split())


def written(folder: Path) -> np.ndarray:
    with h5py.File(folder / "t.h5") as file:
        return file["x"][()]


def right_by_its_flags(folder: Path, tokens: torch.Tensor) -> str:
    """The flags that the refusal names; with them every token is right."""
    code, message = quantize(folder)
    assert code == 3, message
    named = re.search(r"\badd (--.*)", message)
    assert named, message
    code, message = quantize(folder, *[flag.replace("--codebook", "--key") for flag in shlex.split(named[1])])
    assert code == 0, message
    assert np.array_equal(written(folder), tokens.numpy())
    return named[1]


# Contradictions name the reading


def test_the_metric_is_named(tmp_path: Path) -> None:
    codes = draw(0, 32, 6) * torch.linspace(0.3, 3, 32)[:, None]
    x = draw(1, N, 6)
    for metric, tokens in (("cosine", cosine(x, codes)), ("dot", (x.double() @ codes.double().T).argmax(1))):
        write(tmp_path, {"quantize.embedding.weight": codes}, x, tokens)
        assert right_by_its_flags(tmp_path, tokens) == f"--metric {metric}"


def test_the_copy_that_chose_the_tokens_is_named(tmp_path: Path) -> None:
    average, own = draw(0, 32, 6), draw(3, 32, 6)
    x = near(own)
    tokens = nearest(x, own)
    write(tmp_path, {"ema.vq.codebook.weight": average, "model.vq.codebook.weight": own}, x, tokens)
    assert right_by_its_flags(tmp_path, tokens) == "--codebook model.vq.codebook.weight"


def test_a_layer_before_the_table_is_named_where_features_are_as_wide_as_its_input(tmp_path: Path) -> None:
    write(tmp_path, {"vq.codebook.weight": draw(0, 32, 6), "to_codes.weight": draw(1, 6, 12)}, draw(2, N, 12), None)
    code, message = quantize(tmp_path)
    assert code == 3
    assert "to_codes.weight (6, 12) may stand before it" in message
    write(tmp_path, {"vq.codebook.weight": draw(0, 32, 6), "mix.weight": draw(1, 6, 6)}, draw(2, N, 12), None)
    assert "mix.weight" not in quantize(tmp_path)[1]


def test_sums_and_counts_beside_an_unsure_table_are_tried_without_an_error(tmp_path: Path) -> None:
    codes, mean = draw(0, 32, 6), draw(4, 6)
    x = near(codes) + 3 * mean
    tensors = {
        "vq.codebook": codes,
        "vq.code_sum": codes.clone(),
        "vq.code_count": torch.ones(32),
        "vq.running_mean": 3 * mean,
    }
    write(tmp_path, tensors, x, nearest(x - 3 * mean, codes))
    code, message = quantize(tmp_path)
    assert code == 3
    assert "None of" in message
    code, message = quantize(tmp_path, "--key", "vq.codebook", "--layout", "DK")
    assert code == 2
    assert "the counts beside it are those of 32" in message


def test_unit_rows_against_stored_codes_are_named(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 6), 4 * draw(1, N, 6)
    tokens = nearest(torch.nn.functional.normalize(x, dim=1), codes)
    write(tmp_path, {"quantize.embedding.weight": codes}, x, tokens)
    assert right_by_its_flags(tmp_path, tokens) == "--rows unit"


def test_the_table_of_means_is_named(tmp_path: Path) -> None:
    counts, mean, x = torch.rand(32) * 9 + 1, draw(0, 32, 6), draw(1, N, 6)
    tensors = {
        "vq._codebook.embed": draw(2, 1, 32, 6),
        "vq._codebook.embed_avg": (mean * counts[:, None])[None],
        "vq._codebook.cluster_size": counts[None],
        "vq._codebook.initted": torch.tensor([1.0]),
    }
    tokens = nearest(x, mean * counts[:, None] / counts[:, None])
    write(tmp_path, tensors, x, tokens)
    assert right_by_its_flags(tmp_path, tokens) == "--table mean"


def test_a_table_stored_the_other_way_round_is_named(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 32), draw(1, N, 32)
    tokens = nearest(x, codes)
    write(tmp_path, {"codebook": codes.T}, x, tokens)
    assert right_by_its_flags(tmp_path, tokens) == "--layout DK"


def test_features_as_wide_as_a_table_has_codes_name_the_other_way_round(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 6), draw(1, N, 6)
    write(tmp_path, {"codebook": codes.T}, x, None)
    code, message = quantize(tmp_path)
    assert code == 3
    assert "holds 32 codes of 6 dimensions: --layout DK" in message
    assert quantize(tmp_path, "--layout", "DK")[0] == 0
    assert np.array_equal(written(tmp_path), nearest(x, codes).numpy())


def test_two_choices_at_once_are_named(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 32) * torch.linspace(0.3, 3, 32)[:, None], draw(1, N, 32)
    tokens = cosine(x, codes)
    write(tmp_path, {"codebook": codes.T}, x, tokens)
    assert right_by_its_flags(tmp_path, tokens) == "--layout DK --metric cosine"


def test_a_scale_that_the_model_does_not_apply_is_named(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 6).to(torch.float8_e4m3fn), draw(1, N, 6)
    tokens = nearest(x, codes.float())
    write(
        tmp_path, {"quantize.embedding.weight": codes, "quantize.embedding.weight_scale": torch.tensor(0.2)}, x, tokens
    )
    assert right_by_its_flags(tmp_path, tokens) == "--scale none"


def test_the_channel_axis_is_named(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 6), draw(1, N // 6, 6, 6)
    tokens = nearest(x.movedim(1, -1).reshape(-1, 6), codes).reshape(-1, 6)
    write(tmp_path, {"quantize.embedding.weight": codes}, x[:, :, :5], tokens[:, :5])
    code, message = quantize(tmp_path)
    assert code == 3
    assert "--channel-axis 1" in message


def test_tokens_of_another_model_are_refused_with_their_share(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 6), draw(1, N, 6)
    write(tmp_path, {"quantize.embedding.weight": codes}, x, torch.randint(0, 32, (N,)))
    code, message = quantize(tmp_path)
    assert code == 3
    assert re.search(r"\d\.\d % of the recorded tokens are those of this reading\. None of \d+ other readings", message)


def test_a_chain_says_where_it_breaks(tmp_path: Path) -> None:
    first, second, x = draw(0, 32, 6), draw(1, 32, 6) / 3, draw(2, N, 6)
    a = nearest(x, first)
    tokens = torch.stack([a, nearest(x - first[a], second)], 1)
    tokens[:, 1] = tokens[torch.randperm(N, generator=torch.Generator().manual_seed(0)), 1]
    write(tmp_path, {"codebooks.0.weight": first, "codebooks.1.weight": second}, x, tokens)
    code, message = quantize(tmp_path, "--stack", "residual")
    assert code == 3
    assert re.search(r"level 0 100\.0 %, level 1 \d+\.\d %, the chain breaks at level 1", message)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[:-1], "gives tokens for 599 rows; the features .* have 600"),
        (lambda t: t.float(), "is float32: tokens are whole numbers"),
        (lambda t: torch.where(torch.arange(N) == 17, 32, t), "holds 32 in row 17; the codebook has tokens 0 to 31"),
        (lambda t: torch.where(torch.arange(N) == 17, -2, t), "holds -2 in row 17"),
        (lambda t: torch.stack([t, t], 1), "has 2 recorded tokens for each row; the checkpoint has 1 levels"),
    ],
)
def test_what_is_no_tokens_is_told_with_dataset_and_row(tmp_path: Path, change: object, said: str) -> None:
    codes, x = draw(0, 32, 6), draw(1, N, 6)
    write(tmp_path, {"quantize.embedding.weight": codes}, x, change(nearest(x, codes)))  # type: ignore[operator]
    code, message = quantize(tmp_path)
    assert code == 3
    assert re.search(said, message), message


# What would be asked is answered


@pytest.mark.parametrize("stack", ["residual", "product", "independent"])
def test_tokens_tell_how_tables_stack(tmp_path: Path, stack: str) -> None:
    tables = [draw(at, 16, 4) / (at + 1) for at in range(3)]
    x = draw(9, N, 12 if stack == "product" else 4)
    left, columns = x.double(), []
    for at, table in enumerate(tables):
        meets = {"residual": left, "product": x[:, 4 * at : 4 * at + 4], "independent": x}[stack]
        columns.append(nearest(meets, table))
        left = left - table[columns[-1]].double() if stack == "residual" else left
    tokens = torch.stack(columns, 1)
    write(tmp_path, {f"codebooks.{at}.weight": table for at, table in enumerate(tables)}, x, tokens)
    done = toc("inspect", "m.safetensors", "--features", "x.h5", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)["codebooks"]
    assert [book["evidence"] for book in found] == ["proven"] * (3 if stack == "independent" else 1)
    assert found[0]["residual"] == (stack == "residual")
    code, message = quantize(tmp_path)
    assert code == 0, message
    assert np.array_equal(written(tmp_path), (tokens[:, 0] if stack == "independent" else tokens).numpy())
    assert ("3 codebooks; these are the tokens of codebook 0 alone" in message) == (stack == "independent")


@pytest.mark.parametrize("side", ["encoder", "codebook"])
def test_tokens_tell_the_side_of_a_square_projection(tmp_path: Path, side: str) -> None:
    codes, turn, x = draw(0, 32, 6), draw(1, 6, 6), draw(2, N, 6)
    tokens = nearest(x.double() @ turn.double().T if side == "encoder" else x, codes)
    write(tmp_path, square(codes, turn), x, tokens)
    code, message = quantize(tmp_path)
    assert code == 0, message
    assert np.array_equal(written(tmp_path), tokens.numpy())


def square(codes: torch.Tensor, turn: torch.Tensor) -> dict[str, torch.Tensor]:
    """A taming-style VQGAN whose projection is as wide as its codebook."""
    dim = codes.shape[1]
    return {
        "quantize.embedding.weight": codes,
        "quant_conv.weight": turn[:, :, None, None],
        "quant_conv.bias": torch.zeros(dim),
        "post_quant_conv.weight": draw(8, dim, dim, 1, 1),
        "post_quant_conv.bias": torch.zeros(dim),
        "encoder.conv_out.weight": draw(9, dim, 4, 3, 3),
        "decoder.conv_in.weight": draw(10, 4, dim, 3, 3),
    }


@pytest.mark.parametrize("side", ["encoder", "codebook"])
def test_figures_tell_it_where_they_are_plain(tmp_path: Path, side: str) -> None:
    codes, turn = draw(0, 32, 24), torch.linalg.qr(draw(1, 24, 24)).Q
    past = near(codes)
    x = past if side == "codebook" else torch.linalg.solve(turn.double(), past.double().T).T.float()
    write(tmp_path, square(codes, turn), x, None)
    done = toc("inspect", "m.safetensors", "--features", "x.h5", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (book,) = json.loads(done.out)["codebooks"]
    assert book["evidence"] == "assumed"
    assert f"--space {side} is assumed" in " ".join(book["warnings"])
    code, message = quantize(tmp_path)
    assert code == 0, message
    assert np.array_equal(written(tmp_path), nearest(past, codes).numpy())


def test_what_no_figure_decides_is_asked(tmp_path: Path) -> None:
    write(tmp_path, square(draw(0, 32, 6), draw(1, 6, 6)), draw(2, N, 6), None)
    code, message = quantize(tmp_path)
    assert code == 3
    assert "can be read in 2 ways" in message
    assert "Add --space encoder or --space codebook" in message or "Add --space codebook or --space encoder" in message
    for side in ("encoder", "codebook"):
        assert quantize(tmp_path, "--space", side)[0] == 0


@pytest.mark.parametrize("tokens", [True, False])
def test_axes_of_one_length(tmp_path: Path, tokens: bool) -> None:
    codes = draw(0, 32, 24)
    x = near(codes, rows=3 * 576).reshape(3, 24, 24, 24)
    expected = nearest(x.reshape(-1, 24), codes).reshape(3, 24, 24)
    write(tmp_path, {"quantize.embedding.weight": codes}, x.movedim(-1, 1), expected if tokens else None)
    code, message = quantize(tmp_path)
    assert code == 0, message
    assert np.array_equal(written(tmp_path), expected.numpy())
    assert ("--channel-axis 1 is assumed" in message) != tokens


def test_axes_of_one_length_that_nothing_tells_apart(tmp_path: Path) -> None:
    write(tmp_path, {"quantize.embedding.weight": draw(0, 32, 6)}, draw(1, 40, 6, 6, 6), None)
    code, message = quantize(tmp_path)
    assert code == 3
    assert "can be read in 3 ways" in message
    assert quantize(tmp_path, "--channel-axis", "-1")[0] == 0


# Stamps


def test_the_side_of_a_capture_is_obeyed(tmp_path: Path) -> None:
    codes, turn, x = draw(0, 32, 6), draw(1, 6, 6), draw(2, N, 6)
    for side, expected in (("codebook", nearest(x, codes)), ("encoder", nearest(x.double() @ turn.double().T, codes))):
        write(tmp_path, square(codes, turn), x, None, side=side)
        code, message = quantize(tmp_path)
        assert code == 0, message
        assert np.array_equal(written(tmp_path), expected.numpy())
        other = "encoder" if side == "codebook" else "codebook"
        code, message = quantize(tmp_path, "--space", other)
        assert (code, f"captured on the {side} side" in message) == (3, True)


def test_the_channel_axis_of_a_capture_is_obeyed(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 6), draw(1, 20, 6, 5)
    write(tmp_path, {"quantize.embedding.weight": codes}, x, None, channel_axis=1)
    code, message = quantize(tmp_path)
    assert code == 0, message
    assert np.array_equal(written(tmp_path), nearest(x.movedim(1, -1).reshape(-1, 6), codes).reshape(20, 5).numpy())


def test_features_of_another_checkpoint_are_said(tmp_path: Path) -> None:
    codes, x = draw(0, 32, 6), draw(1, N, 6)
    write(
        tmp_path,
        {"quantize.embedding.weight": codes},
        x,
        nearest(x, codes),
        checkpoint={"other.safetensors": "ab" * 32},
    )
    done = toc("optimize", "m.safetensors", "--features", "x.h5", "-q", cwd=tmp_path)
    assert done.code == 0
    assert "captured with another checkpoint (other.safetensors, SHA-256 abababababab" in " ".join(done.err.split())


# What a proof gives


def test_a_proven_reading_is_recorded_and_offers_its_edited_copies(tmp_path: Path) -> None:
    codes = draw(0, 32, 6)
    x = near(codes)
    write(tmp_path, {"codebook": codes}, x, nearest(x, codes))
    done = toc("optimize", "m.safetensors", "--features", "x.h5", "--emit", "masked", "-q", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "assumed" not in done.err
    (book,) = json.loads((tmp_path / "m.toc.json").read_text())["codebooks"]
    assert book["evidence"] == "proven"
    assert book["proof"] == {"x": {"least": 1.0, "rows": N, "shares": [[1.0]]}}


def test_tokens_of_the_first_levels_prove_those(tmp_path: Path) -> None:
    first, second, x = draw(0, 32, 6), draw(1, 32, 6) / 3, draw(2, N, 6)
    a = nearest(x, first)
    tokens = torch.stack([a, torch.full_like(a, -1)], 1)
    write(tmp_path, {"codebooks.0.weight": first, "codebooks.1.weight": second}, x, tokens)
    code, message = quantize(tmp_path, "--stack", "residual")
    assert code == 0, message
    assert "levels 1 to 1 have no recorded tokens of x" in message
    assert np.array_equal(written(tmp_path)[:, 0], a.numpy())


def test_near_ties_and_codes_that_are_equal_do_not_contradict(tmp_path: Path) -> None:
    codes = draw(0, 32, 6)
    codes[5] = codes[9]
    x = near(codes)
    tokens = nearest(x, codes)
    tokens[tokens == 5] = 9
    write(tmp_path, {"quantize.embedding.weight": codes}, x, tokens)
    assert quantize(tmp_path)[0] == 0


def test_a_pruned_codebook_takes_no_flags_of_a_reading(tmp_path: Path) -> None:
    codes = draw(0, 32, 6)
    x = near(codes)
    write(tmp_path, {"quantize.embedding.weight": codes}, x, nearest(x, codes))
    assert toc("optimize", "m.safetensors", "--features", "x.h5", "-q", cwd=tmp_path).code == 0
    done = toc("quantize", "x.h5", "--codebook", "m.toc.safetensors", "--metric", "dot", cwd=tmp_path)
    assert done.code == 2
    assert "read as it was written" in done.err
