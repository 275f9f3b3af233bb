"""Names out of files are shown, never obeyed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toc_cli.io.names import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("quantize.embedding.weight", "quantize.embedding.weight"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\r\tc\x00", r"a\nb\r\tc\x00"),
        ("‮txt.exe", r"\u202etxt.exe"),
        ("\x9b2J", r"\x9b2J"),
        ("Größe/日本", "Größe/日本"),
    ],
)
def test_control_characters_become_escapes(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_a_long_name_is_cut() -> None:
    assert printable("x" * 300, 10) == "x" * 10 + "…"


@given(st.text(max_size=50))
def test_nothing_that_a_terminal_obeys_is_left(name: str) -> None:
    assert all(unicodedata.category(c)[0] != "C" for c in printable(name))
