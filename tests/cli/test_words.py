"""A command that is made with one word alone is what it is in the whole."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from api.cli import app, made

WORDS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # it is a group


@pytest.mark.parametrize("word", WORDS)
def test_a_word_alone_is_what_it_is_in_the_whole(word: str) -> None:
    alone, whole = (CliRunner().invoke(each, [word, "--help"]) for each in (made(word), app))

    assert alone.output == whole.output
    assert alone.exit_code == whole.exit_code == 0
    assert word in alone.output
    assert list(typer.main.get_command(made(word)).commands) == [word]  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("word", [None, "--help", "nonsense", ""])
def test_with_anything_else_it_is_the_whole(word: str | None) -> None:
    assert list(typer.main.get_command(made(word)).commands) == WORDS  # type: ignore[attr-defined]  # as above


def test_a_short_command_does_not_import_the_server() -> None:
    code = "import sys; from api.cli import made; made('tenant'); sys.exit(any(name.startswith('api.routes') for name in sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
