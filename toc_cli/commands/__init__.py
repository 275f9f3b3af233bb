"""The command line: one file per command; each joins its options to one library call."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import typer

from toc_cli import __version__
from toc_cli.commands import (
    bench,
    capture,
    decode,
    demo,
    evaluate,
    explain,
    inspect,
    optimize,
    quantize,
    remap,
    report,
    train_fcid,
)
from toc_cli.commands.encoding import soften
from toc_cli.commands.help import Grouped
from toc_cli.commands.interrupt import Interrupt, sentence, stopped_by
from toc_cli.commands.log import hoist, listen
from toc_cli.commands.settings import defaults
from toc_cli.errors import OutputError, TocError, UsageError

app = typer.Typer(
    name="toc",
    help="Score, prune and vet the codebook of a VQ checkpoint, training-free (TOC, arXiv 2403.05168).",
    epilog="Start with: toc demo, then toc optimize model.safetensors --features feats.h5 --keep 0.5",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, room, short in (
    ("inspect", inspect, "List the codebooks of a checkpoint and what can be written."),
    ("capture", capture, "Record what reaches the quantiser of a codec, and its tokens."),
    ("optimize", optimize, "Score every dimension, keep the best, write and measure."),
    ("quantize", quantize, "Features to tokens (and vectors), streamed."),
    ("decode", decode, "Tokens to vectors."),
    ("remap", remap, "Old tokens under the ids of fewer codes."),
    ("train-fcid", train_fcid, "Train FCID, or its baseline, on paired features."),
    ("evaluate", evaluate, "Test what codes carry across modalities, before and after."),
    ("report", report, "Draw run records, compare with a baseline, and gate."),
    ("explain", explain, "Say what a metric, warning, verdict or criterion means."),
    ("bench", bench, "Measure this machine against the floor and its peers."),
    ("demo", demo, "The whole road on bundled data."),
):
    app.command(name, cls=Grouped if name == "optimize" else None, short_help=short, epilog=f"Example: {room.EXAMPLE}")(
        getattr(room, name.replace("-", "_"))
    )

COMMANDS = [command.name for command in app.registered_commands if command.name]
OTHERS = {
    other: name
    for name, words in {
        "optimize": "prune shrink compress select score optimise",
        "quantize": "encode tokenize tokens quantise",
        "train-fcid": "train fcid",
        "evaluate": "eval test",
        "inspect": "info show ls list",
        "report": "check gate compare",
        "bench": "benchmark",
        "capture": "record features",
        "explain": "why define",
        "--help": "help",
    }.items()
    for other in words.split()
}
"""Words of others for our commands."""


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"toc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Say what is done, and its time; -vv: libraries too.",
        ),
    ] = 0,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option(help="The same, by name.")
    ] = None,
) -> None:
    if verbose or log_level:
        listen(log_level or ("info" if verbose == 1 else "debug"))
    if context.invoked_subcommand == "optimize":
        command = context.command.commands["optimize"]  # type: ignore[attr-defined]
        context.obj, found = defaults({parameter.name: parameter for parameter in command.params})
        context.default_map = {"optimize": found}


CLOSED = 141
"""128 + SIGPIPE: the reader of stdout went away, as `head` does."""


def main() -> None:
    """Run the program and leave with the exit code of the contract."""
    code = run()
    if stopped_by(code) is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # at once: a thread that hashes a large file would be waited for
    sys.exit(code)


def run() -> int:
    """Run the program; turn every error into its sentence; the exit code of the contract."""
    soften(sys.stdout, sys.stderr)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a lost process has our sentence, not a stack of frames
    code: object
    with Interrupt() as interrupt:
        try:
            code = app(args=hoist(sys.argv[1:] or ["--help"]), standalone_mode=False)
            sys.stdout.flush()
        except SystemExit as stop:
            code = CLOSED if reader_gone(stop) else stop.code
        except (Exception, KeyboardInterrupt) as error:
            # A library may have made another error of an interrupt.
            if isinstance(error, KeyboardInterrupt) or interrupt.number is not None:
                code = 128 + signal.SIGINT
            elif reader_gone(error):
                code = CLOSED
            elif os.environ.get("TOC_DEBUG") == "1":
                raise
            else:
                known = in_words(error)
                code = known.exit_code
                say(known)
        if interrupt.number is not None:
            code = 128 + interrupt.number
        if (number := stopped_by(code)) is not None:
            say(TocError(sentence(number)))
    if code == CLOSED:
        hush()
    return code if isinstance(code, int) else 0


def reader_gone(error: BaseException | None) -> bool:
    """Whether an error, or the one that it hides, is that of a pipe whose reader went away."""
    while error is not None and not isinstance(error, BrokenPipeError):
        error = error.__cause__ or error.__context__
    return error is not None


def hush() -> None:
    """Give stdout and stderr an end that takes all, so that what is still buffered fails no more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say(error: TocError) -> None:
    """The error on stderr, where somebody reads it; rich is loaded only now, so that help stays quick."""
    from toc_cli.commands.output import complain

    with contextlib.suppress(OSError, SystemExit):
        complain(error)


def in_words(error: Exception) -> TocError:
    """The user's sentence for any exception: ours as it is, the command line's as usage, the rest as internal (exit 4)."""
    if isinstance(error, TocError):
        return error
    if isinstance(error, typer.BadParameter.__mro__[1]):
        return usage(error)
    if isinstance(error, OSError):
        return OutputError(
            f"{error.strerror or error}: {error.filename or 'no file named'}.", "Free space or permissions help."
        )
    if isinstance(error, MemoryError):
        return TocError("Out of memory.", "Lower --max-memory.")
    return TocError(
        f"Internal error: {type(error).__name__}: {error}.", "TOC_DEBUG=1 shows the traceback; please report it."
    )


def usage(error: Any) -> UsageError:
    """Typer's own usage error as one sentence that ends in the command that helps."""
    path = error.ctx.command_path if error.ctx else "toc"
    said = error.format_message().rstrip(".")
    if unknown := re.match(r"No such command '([^']*)'", said):
        word = unknown[1].lower()
        meant = OTHERS.get(word) or next(iter(get_close_matches(word, COMMANDS, n=1)), None)
        if meant:
            return UsageError(f"There is no command {unknown[1]!r}.", f"Did you mean toc {meant}?")
    if said == "Missing option '--features'":
        return UsageError(f"{said}.", f"toc capture MODEL DATA -o feats.h5 records them; see {path} --help.")
    return UsageError(said, f"See {path} --help.")
