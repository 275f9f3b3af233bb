"""Do the tests fail when the code is wrong? `python tests/mutants.py [COUNT] [SEED]` breaks one thing at a time and runs its tests.

First the lines that once could be wrong unnoticed (NAMED), each with the test that must fail; then COUNT seeded mutants: a comparison,
an operator, a condition or a number changed. Each mutant lives in a forked process; no file is touched.
The tests as they stand must pass first: where they fail anyway, every mutant would look noticed.
Prints every survivor, with the reason where it is known to be equal (EQUIVALENT), then how many there were of either. One core.

Left out is what no result depends on: how much is done at a time (module constants whose names end as in TUNING, and what is assigned
to a name `step` or `tiles`), how much a cache holds (`maxsize`), and default seeds; beside them words: annotations, f-strings, and
what stands in a `raise` or an `assert`.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import h5py  # noqa: F401
import hypothesis.extra.numpy  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import scipy.cluster.hierarchy
import scipy.stats  # noqa: F401
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "toc_cli"
PATIENCE = 300

ROOMS = {
    "ops/scores.py": ("ops/test_scores.py", "ops/test_geometry.py", "ops/test_criteria.py"),
    "ops/selection.py": ("ops/test_scores.py",),
    "ops/moments.py": ("ops/test_scores.py",),
    "ops/blocks.py": ("ops/test_scores.py",),
    "ops/rotation.py": ("ops/test_geometry.py", "ops/test_criteria.py"),
    "ops/geometry.py": ("ops/test_geometry.py",),
    "ops/scatter.py": ("ops/test_criteria.py",),
    "ops/stability.py": ("ops/test_geometry.py", "ops/test_criteria.py"),
    "ops/bootstrap.py": ("ops/test_metrics.py", "ops/test_chance.py", "pipeline/test_intervals.py"),
    "ops/metrics.py": ("ops/test_metrics.py",),
    "ops/usage.py": ("ops/test_metrics.py", "pipeline/test_tokens.py"),
    "ops/probe.py": ("ops/test_metrics.py",),
    "ops/figures.py": ("ops/test_figures.py",),
    "ops/level.py": ("ops/test_quantiser.py", "ops/test_metrics.py"),
    "ops/quantiser.py": ("ops/test_quantiser.py", "ops/test_metrics.py"),
    "ops/lloyd.py": ("ops/test_lloyd.py",),
    "ops/criteria/agreement.py": ("ops/test_criteria.py",),
    "ops/criteria/softmargin.py": ("ops/test_criteria.py",),
    "ops/criteria/rows.py": ("ops/test_criteria.py",),
    "ops/criteria/rotations.py": ("ops/test_criteria.py",),
    "ops/criteria/codes.py": ("ops/test_scores.py", "ops/test_geometry.py"),
    "report/checks.py": ("report/test_checks.py",),
    "io/families/emit.py": ("io/families/test_emit.py", "io/families/test_variants.py"),
    "io/families/space.py": ("io/families/test_emit.py", "io/families/test_variants.py"),
    "io/families/offered.py": ("io/families/test_emit.py", "io/families/test_variants.py", "pipeline/test_keeps.py"),
    "io/families/copies.py": ("io/families/test_emit_training_files.py",),
    "pipeline/auto.py": ("pipeline/test_auto.py",),
    "pipeline/curve.py": ("pipeline/test_auto.py", "pipeline/test_optimize.py"),
    "pipeline/choice.py": ("pipeline/test_auto.py", "pipeline/test_optimize.py"),
    "pipeline/counting.py": ("pipeline/test_optimize.py",),
    "fcid/losses/club.py": ("fcid/test_fcid_losses.py",),
    "fcid/losses/cmcm.py": ("fcid/test_fcid_losses.py",),
    "fcid/losses/commitment.py": ("fcid/test_fcid_losses.py",),
    "fcid/losses/cpc.py": ("fcid/test_fcid_losses.py",),
    "fcid/losses/infonce.py": ("fcid/test_fcid_losses.py",),
    "fcid/losses/reconstruction.py": ("fcid/test_fcid_losses.py",),
}
"""By file the tests that must notice; those that start processes are left out, which the mutant does not reach."""

TUNING = ("TILE_ROWS", "_NUMBERS", "_PANELS", "_COUNTS")

EQUIVALENT = (
    ("ops/criteria/rows.py", "rows <= ROWS", "ROWS of ROWS, sorted, are all of them"),
    ("ops/figures.py", "centred.shape[0] < centred.shape[1]", "of a square matrix both products have the same spectrum"),
    ("ops/rotation.py", "1.0", "uniform weights of any size are divided by their sum"),
    ("ops/rotation.py", "vectors * np.where(vectors[peak, np.arange(len(peak))] < 0, -1.0, 1.0)", "a sign times is a sign divided"),
    ("ops/criteria/rows.py", "most < len(codes)", "the nearest of as many as there are codes are all of them"),
    ("ops/criteria/codes.py", "known.seed + 1000 * level + head", "another seed for each table serves as well"),
    ("ops/criteria/agreement.py", "rows // 4", "how many rows a resample may look at"),
    ("ops/criteria/softmargin.py", "8", "steps of a search that goes on climbing: one more serves as well"),
)  # fmt: skip
"""File, expression before the change, and why a test cannot tell the mutant from it."""

NAMED = (
    ('ops/bootstrap.py', 'ops/test_metrics.py',
     'values if centre is None else values + (centre - values.mean())',
     'values'),
    ('ops/bootstrap.py', 'ops/test_metrics.py',
     'LEVEL = 0.95',
     'LEVEL = 0.9'),
    ('ops/scores.py', 'ops/test_scores.py',
     'DEAD = 1e-6',
     'DEAD = 1e-7'),
    ('ops/scores.py', 'ops/test_scores.py',
     'last=np.all(last, axis=0) if last else None',
     'last=last[0] if last else None'),
    ('ops/scores.py', 'ops/test_scores.py',
     'last=np.all(last, axis=0) if last else None',
     'last=np.any(last, axis=0) if last else None'),
    ('ops/selection.py', 'ops/test_scores.py',
     'np.lexsort((among, score[among], ~ahead[among]))',
     'np.lexsort((among, score[among]))'),
    ('ops/probe.py', 'ops/test_metrics.py',
     'RIDGE = 1e-3',
     'RIDGE = 1e-2'),
    ('ops/rotation.py', 'ops/test_criteria.py',
     'RIDGE = 0.3',
     'RIDGE = 0.4'),
    ('ops/figures.py', 'ops/test_figures.py',
     '_thinned(values * np.sqrt(codes / len(measured)))',
     '_thinned(values)'),
    ('io/families/offered.py', 'io/families/test_emit.py',
     'if rotated and any(state.found.values()):',
     'if False:'),
    ('io/families/offered.py', 'io/families/test_variants.py',
     'BYTES[ckpt.infos[site.key].reads] < 4',
     'BYTES[ckpt.infos[site.key].reads] < 2'),
    ('io/families/emit.py', 'io/families/test_emit.py',
     'other == key or torch.equal(ckpt.get(other), ckpt.get(key))',
     'True'),
    ('io/families/emit.py', 'io/families/test_emit.py',
     '                rows.copy_(renormalised(rows))\n',
     '                pass\n'),
    ('io/families/emit.py', 'io/families/test_emit.py',
     '            part.copy_(renormalised(part))\n',
     '            pass\n'),
    ('io/families/__init__.py', 'io/families/test_emit.py',
     'zero_fill=cosine or codebook.zero_fill',
     'zero_fill=codebook.zero_fill'),
    ('fcid/codebook.py', 'fcid/test_fcid_switches.py',
     'self.ema_count.masked_fill_(where, 1)',
     'self.ema_count.masked_fill_(where, 2)'),
    ('fcid/losses/club.py', 'fcid/test_fcid_losses.py',
     'both(seconds, other_seconds)',
     'seconds'),
    ('fcid/losses/cmcm.py', 'fcid/test_fcid_losses.py',
     'scores[both][:, both]',
     'scores[both]'),
)  # fmt: skip
"""File, the tests that notice, what stands there, and what would be wrong."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Add: ast.Sub,
    ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip


def places(tree: ast.Module) -> list[tuple[int, str]]:
    """(index of the node in `ast.walk` order, what to do) of everything that a mutant may change."""
    silent: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.FunctionDef | ast.arg):
            for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
                silent |= {id(inner) for inner in ast.walk(part)} if part is not None else set()
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert) or _tunes(node):
            silent |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.arguments):
            silent |= {id(default) for default in _seeds(node)}
    found = []
    for at, node in enumerate(ast.walk(tree)):
        if id(node) in silent:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            found.append((at, "compare"))
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            found.append((at, "operator"))
        elif isinstance(node, ast.If | ast.IfExp):
            found.append((at, "condition"))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            found.append((at, "number"))
    return found


def _tunes(node: ast.AST) -> bool:
    """Whether a statement or an argument says only how much is done, or held, at a time."""
    if isinstance(node, ast.keyword):
        return node.arg == "maxsize"
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return False
    name = node.targets[0].id
    return name in ("step", "tiles") or name.endswith(TUNING)


def _seeds(arguments: ast.arguments) -> list[ast.expr]:
    """Defaults of arguments called `seed`."""
    plain = [*arguments.posonlyargs, *arguments.args]
    ordered = zip(plain[len(plain) - len(arguments.defaults) :], arguments.defaults, strict=True)
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [default for own, default in (*ordered, *named) if own.arg == "seed" and default is not None]


def mutant(source: str, at: int, kind: str) -> tuple[str, str]:
    """The source with one change, and the change in words."""
    tree = ast.parse(source)
    node = list(ast.walk(tree))[at]
    before = ast.unparse(node.test if isinstance(node, ast.If) else node)
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), copy.deepcopy(node.test))
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 2 + 0.1  # type: ignore[operator]
    after = ast.unparse(node.test if isinstance(node, ast.If) else node)
    return ast.unparse(ast.fix_missing_locations(tree)), f"line {line}: {before}  ->  {after}"


def survives(path: Path, source: str, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass with `source` in the place of the file."""
    child = os.fork()
    if child == 0:
        _run(path, source, tests)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run(path: Path, source: str, tests: tuple[str, ...]) -> None:
    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> object:
        return compile(source, str(path), "exec") if Path(self.path) == path else original(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # this checkout's package, wherever another is installed
    torch.set_num_threads(1)
    options = [
        "-q",
        "-x",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "-p",
        "no:cacheprovider",
        "--hypothesis-seed=0",
        "-k",
        "not ranks_and_chunks and not repeated_runs and not in_no_time",
    ]
    try:
        code = int(pytest.main([*options, *(f"tests/{test}" for test in tests)]))
    except BaseException:
        code = 1
    os._exit(code)


def drawn(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """`count` mutants over all rooms: file, source, what was changed."""
    everything = [
        (name, at, kind) for name in ROOMS for at, kind in places(ast.parse((PACKAGE / name).read_text("utf-8")))
    ]
    for name, at, kind in random.Random(seed).sample(everything, min(count, len(everything))):
        yield (name, *mutant((PACKAGE / name).read_text("utf-8"), at, kind))


def main(count: int, seed: int) -> int:
    for tests in dict.fromkeys(ROOMS.values()):
        name = next(name for name in ROOMS if ROOMS[name] == tests)
        if not survives(PACKAGE / name, (PACKAGE / name).read_text("utf-8"), tests):
            print(f"{', '.join(tests)}: red without any mutant, so they would notice anything")
            return 2
    for name, test, right, wrong in NAMED:
        source = (PACKAGE / name).read_text("utf-8")
        if source.count(right) < 1:
            print(f"{name} no longer holds: {right}")
            return 2
        if survives(PACKAGE / name, source.replace(right, wrong), (test,)):
            print(f"named mutant survives in {name}: {right}  ->  {wrong}")
            return 1
    print(f"all {len(NAMED)} named mutants are noticed")
    alive = equal = 0
    for at, (name, source, change) in enumerate(drawn(count, seed), 1):
        if survives(PACKAGE / name, source, ROOMS[name]):
            alive += 1
            why = explained(name, change)
            equal += why is not None
            print(f"survives ({alive} of {at}): {name} {change}" + (f"  ({why})" if why else ""), flush=True)
    print(f"{alive} of {count} mutants survive (seed {seed}), {equal} of them equal to what stands there")
    return 0


def explained(name: str, change: str) -> str | None:
    """Why a surviving mutant is no fault; None where it may be one."""
    return next((why for file, what, why in EQUIVALENT if file == name and f": {what}  ->" in change), None)


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    sys.exit(main(words[0] if words else 200, words[1] if len(words) > 1 else 0))
