"""The plain help of a command: its options in groups, in the order in which they are declared."""

from __future__ import annotations

from typing import Any

import typer.core

GROUPS = {
    "Input": "features codebook layout metric rows table scale stack assume modality channel_axis space limit data",
    "Choice": "keep criterion weights normalize ratio max_distortion min_agreement sweep codes vocab levels refresh budget bytes",
    "Output": "emit fill output report no_samples dry_run verify lean force",
    "Limits": "eval_rows max_memory device seed",
}
"""The groups of `toc optimize`, by the names of its parameters; the rest comes last."""


class Grouped(typer.core.TyperCommand):
    """A command with many options, whose help lists them in GROUPS."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        titles = {name: title for title, names in GROUPS.items() for name in names.split()}
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", *GROUPS, "Other options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                groups["Arguments" if argument else titles.get(parameter.name or "", "Other options")].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
