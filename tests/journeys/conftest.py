"""A whole installation of its own for each journey: `holdbook up`, and the command line beside it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOLDBOOK = [sys.executable, "-m", "api.cli"]


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOLDBOOK_DATA": str(home / "data"), "HOLDBOOK_PORT": "0", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


@pytest.fixture
def up(environment: dict[str, str], home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`holdbook up`, and the address it says it serves."""
    with (home / "log").open("w") as log:
        process = subprocess.Popen([*HOLDBOOK, "up"], env=environment, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    else:
        pytest.fail(f"`holdbook up` ended: {said}{(home / 'log').read_text()[-2000:]}")
    yield process, found.group()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(120)
    finally:
        process.kill()
        process.stdout.close()


def run(environment: dict[str, str], *arguments: str, stdin: str = "") -> str:
    """What the command line says."""
    done = subprocess.run([*HOLDBOOK, *arguments], env=environment, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
