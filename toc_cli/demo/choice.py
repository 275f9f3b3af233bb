"""What a user may choose of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BOUND = 0.01


@dataclass(frozen=True)
class DemoChoice:
    """As in `toc optimize`; `--keep auto` stays within 1 % of excess distortion."""

    keep: str = "auto"
    criterion: str = "auto"
    force: bool = False

    def options(self) -> dict[str, Any]:
        """For `toc_cli.pipeline.Options`."""
        return {
            "keep": self.keep, "criterion": self.criterion, "max_distortion": BOUND if self.keep == "auto" else None
        }  # fmt: skip
