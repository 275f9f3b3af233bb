"""The memory of a training process is as it was once the training ends, however it ends."""

from __future__ import annotations

import gc
import sys

import pytest

from toc_cli.fcid.memory import steady_memory


@steady_memory()
def interrupted() -> None:
    assert gc.get_freeze_count() > 0
    raise KeyboardInterrupt


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
def test_the_collector_is_given_back(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gc.get_freeze_count() == 0
