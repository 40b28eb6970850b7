"""The promises the project's own files make."""

import re
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = {"adapters", "api", "bench", "clients", "domain", "eventstore", "projections"}


def requirements() -> list[str]:
    """The lock's requirements with their continuation lines joined, comments dropped."""
    text = (ROOT / "requirements.lock").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [" ".join(line.split()) for line in lines]


def test_the_lock_names_no_index_and_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text()

    assert not re.search(r"https?:|^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)
    assert str(ROOT) not in text
    assert not [requirement for requirement in requirements() if " @ " in requirement or requirement.startswith("-")]


def test_everything_in_the_lock_is_pinned_with_hashes() -> None:
    assert len(requirements()) > 50
    pinned = re.compile(r"[a-z0-9][a-z0-9-]*(\[[a-z,]+\])?==\S+ (; .+? )?--hash=sha256:[0-9a-f]{64}( --hash=sha256:[0-9a-f]{64})*")
    assert [requirement for requirement in requirements() if not pinned.fullmatch(requirement)] == []


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == {"embedded", "bot", "desktop", "dev"}
    asked = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]

    names = {re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0] for requirement in asked}
    locked = {re.split(r"[\[=]", requirement, maxsplit=1)[0] for requirement in requirements()}

    assert names - locked == set()


def test_no_installed_distribution_claims_one_of_our_import_names() -> None:
    claims = packages_distributions()

    assert {name: claims[name] for name in OURS if set(claims.get(name, [])) - {"holdbook"}} == {}
    # A distribution without top_level.txt is seen by its files only.
    claimants = {
        f"{distribution.metadata['Name']}: {file}"
        for distribution in distributions()
        if distribution.metadata["Name"] != "holdbook"
        for file in distribution.files or ()
        if file.parts[0].removesuffix(".py") in OURS
    }
    assert claimants == set()
