"""compose.yaml and what it mounts, held against the compose specification and against the program itself.

No engine runs here: whether the images start is not seen, but everything in these files that names something of ours is.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no types of its own
import pytest
import typer
import yaml  # type: ignore[import-untyped]  # as above

from api.cli import app as cli
from api.routes.health import router as health
from api.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("holdbook:")}


def test_it_is_a_compose_file() -> None:
    VALIDATOR.validate(COMPOSE)


def test_the_schema_would_say_so_if_it_were_none() -> None:
    broken = {**COMPOSE, "services": {**SERVICES, "api": {**SERVICES["api"], "comand": ["serve"]}}}

    assert not VALIDATOR.is_valid(broken)


def test_everything_that_is_asked_for_runs() -> None:
    assert set(SERVICES) == {"postgres", "nats", "migrate", "api", "worker", "backup", "prometheus", "grafana"}
    assert set(OURS) == {"migrate", "api", "worker", "backup"}


@pytest.mark.parametrize("name", OURS)
def test_commands_are_commands_of_the_program(name: str) -> None:
    command = typer.main.get_command(cli)
    words = list(SERVICES[name]["command"])

    subcommand, arguments = words[0], words[1:]
    found = command.commands[subcommand]  # type: ignore[attr-defined]  # a group

    # Parsed as the program would, without running it: an unknown option, or a missing argument, is an error.
    found.make_context(subcommand, arguments)


@pytest.mark.parametrize("name", OURS)
def test_settings_are_settings_of_the_program(name: str) -> None:
    environment: dict[str, str] = SERVICES[name]["environment"]
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    secrets = {f"/run/secrets/{secret}" for secret in SERVICES[name]["secrets"]}

    named = {key.removesuffix("_FILE") if key not in known else key for key in environment}
    from_files = {value for key, value in environment.items() if key.endswith("_FILE") and key not in known}

    assert named - known == set()
    assert from_files == secrets, "each secret that is mounted is read, and each that is read is mounted"


@pytest.mark.parametrize("name", OURS)
def test_plain_settings_have_values_that_are_accepted(name: str) -> None:
    values = {key.removeprefix(PREFIX).lower(): value for key, value in SERVICES[name]["environment"].items() if not key.endswith("_FILE")}

    assert Settings(**values).model_fields_set >= set(values)


def test_no_secret_stands_in_the_file_itself() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|DATABASE_URL|NATS_URL", key):
                assert key.endswith("_FILE"), f"{name}: {key}"
                assert value.startswith("/run/secrets/")


def test_secrets_configs_volumes_networks_and_files_exist() -> None:
    for kind in ("secrets", "configs", "networks"):
        used = {each["source"] if isinstance(each, dict) else each for service in SERVICES.values() for each in service.get(kind, [])}
        assert used == set(COMPOSE[kind]), kind
    volumes = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert volumes == set(COMPOSE["volumes"])
    assert [entry["file"] for entry in COMPOSE["configs"].values() if not (ROOT / entry["file"]).is_file()] == []


def test_the_secrets_that_the_manual_makes_are_those_that_are_mounted() -> None:
    manual = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")

    made = set(re.findall(r"> secrets/(\w+)", manual))

    assert {f"./secrets/{name}" for name in made} == {entry["file"] for entry in COMPOSE["secrets"].values()}
    assert "/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_health_is_asked_where_the_program_answers() -> None:
    routes = {getattr(route, "path", "") for route in health.routes}
    ports = {"api": SERVICES["api"]["command"][-1], "worker": SERVICES["worker"]["environment"]["HOLDBOOK_WORKER_PORT"]}

    for name, port in ports.items():
        asked = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", " ".join(SERVICES[name]["healthcheck"]["test"]))
        assert asked is not None
        assert (asked[1], asked[2]) == (port, "/readyz")
        assert asked[2] in routes


def test_every_service_is_looked_after() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] == ("on-failure" if name == "migrate" else "unless-stopped"), name
        assert service["healthcheck"].get("disable") is True if name == "migrate" else service["healthcheck"]["test"][0] == "CMD", name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged")
        assert not re.search(r":latest$|^[^:]+$", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: what the world may reach is the operator's to say"
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in OURS.values())


def test_what_starts_waits_for_what_it_needs() -> None:
    for name in ("api", "worker", "backup"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for name in OURS:
        assert SERVICES[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    conditions = {each["condition"] for service in SERVICES.values() for each in service.get("depends_on", {}).values()}
    assert conditions == {"service_healthy", "service_completed_successfully", "service_started"}


def test_there_is_time_to_drain() -> None:
    environment = SERVICES["api"]["environment"]

    needed = float(environment["HOLDBOOK_DRAIN_DELAY_SECONDS"]) + float(environment["HOLDBOOK_DRAIN_SECONDS"])

    assert all(int(service["stop_grace_period"].removesuffix("s")) > needed for service in OURS.values())


def test_prometheus_asks_services_where_they_answer() -> None:
    config = yaml.safe_load((ROOT / "docs/deploy/prometheus.yml").read_text(encoding="utf-8"))
    asked: dict[str, str] = {}
    for job in config["scrape_configs"]:
        for found in job.get("dns_sd_configs", []):
            asked |= dict.fromkeys(found["names"], str(found["port"]))
        for found in job.get("static_configs", []):
            asked |= dict(target.split(":") for target in found["targets"])

    assert asked == {"api": "8080", "worker": SERVICES["worker"]["environment"]["HOLDBOOK_WORKER_PORT"], "prometheus": "9090"}
    for name in asked:
        assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])
    mounted = {config["target"] for config in SERVICES["prometheus"]["configs"]}
    assert set(config["rule_files"]) < mounted


def test_the_database_and_the_bus_can_be_reached_from_inside_only() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == SERVICES["nats"]["networks"] == ["inside"]
    assert "ports" not in SERVICES["postgres"]
    assert "ports" not in SERVICES["nats"]
