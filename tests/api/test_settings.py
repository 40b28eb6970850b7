"""Settings from the environment and from files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.settings import Settings, SettingsError

ROOT = Path(__file__).parents[2]
URL = "postgresql://holdbook:pass-word@postgres/holdbook"


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HOLDBOOK_DATABASE_URL", raising=False)
    file = tmp_path / "database_url"
    file.write_text(URL + "\n")
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL_FILE", str(file))
    return file


def test_a_value_may_stand_in_a_file(secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "port").write_text("1234\r\n")
    monkeypatch.setenv("HOLDBOOK_PORT_FILE", str(tmp_path / "port"))

    assert Settings().database_url == URL
    assert Settings().port == 1234
    assert Settings(database_url="given").database_url == "given", "what is given on the command line comes first"


@pytest.mark.parametrize("content", ["", "\n", None, b"\xff"])
def test_a_file_without_a_value_is_refused(secret: Path, content: str | bytes | None) -> None:
    secret.unlink()
    if content is not None:
        secret.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(SettingsError, match="HOLDBOOK_DATABASE_URL_FILE"):
        Settings()


def test_both_at_once_are_refused(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDBOOK_DATABASE_URL", URL)

    with pytest.raises(SettingsError, match="Both HOLDBOOK_DATABASE_URL and HOLDBOOK_DATABASE_URL_FILE"):
        Settings()


def test_no_setting_is_called_like_another_ones_file() -> None:
    names = set(Settings.model_fields)

    assert {name for name in names if name.endswith("_file") and name.removesuffix("_file") in names} == set()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HOLDBOOK_DATABASE_URL": URL, "HOLDBOOK_PORT": "pass-word"}, "HOLDBOOK_PORT"),
        ({"HOLDBOOK_DATABASE_URL_FILE": "/nowhere"}, "HOLDBOOK_DATABASE_URL_FILE"),
    ],
)
def test_mistakes_are_told_in_words_and_without_the_value(environment: dict[str, str], said: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOLDBOOK_")}

    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "migrate"], env={**clean, **environment}, cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "pass-word" not in done.stderr
