"""What the dashboard and the alerts ask for is what the processes export, under these names and labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types of its own
from prometheus_client.parser import text_string_to_metric_families

from adapters.nats.publishing import Options, Publisher
from api.app import create_app
from api.metrics import Metrics
from api.server import following
from api.settings import Settings
from domain.catalog import DECIDERS
from eventstore.store import Store

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/holdbook.json").read_text(encoding="utf-8"))
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (rule["expr"] for rule in RULES)


def names(expression: str) -> set[str]:
    """The metrics an expression asks for."""
    return set(re.findall(r"\b(?:holdbook|process|python|go)_[a-z0-9_]+", re.sub(r'"[^"]*"', "", expression)))


@pytest.fixture
async def exported(database_dsn: str) -> set[str]:
    """The names of a process that does everything."""
    store = await Store.open(database_dsn, DECIDERS)
    metrics = Metrics(store)
    nobody: Any = None
    async with following(database_dsn, store, metrics) as follower:
        create_app(store, nobody, Settings(), follower, metrics)
        text = metrics.text().decode()
        if "holdbook_nats_up" not in text:  # a bus is not configured here
            metrics.register(Publisher(database_dsn, [0], Options(url="nats://127.0.0.1:1")))
        text = metrics.text().decode()
    await store.drain()
    families = list(text_string_to_metric_families(text))
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


async def test_every_metric_that_is_asked_for_is_exported(exported: set[str]) -> None:
    asked = {name for expression in expressions() for name in names(expression)}

    assert asked - exported == set()
    assert len(asked) > 15


async def test_every_metric_of_ours_is_told_in_the_manual(exported: set[str]) -> None:
    manual = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in exported if name.startswith("holdbook_")}

    assert {name for name in ours if f"`{name}`" not in manual and f"`{name}{{" not in manual} == set()


def test_the_dashboard_finds_its_source() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/holdbook.yml").read_text(encoding="utf-8"))["providers"][0]
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"] for source in sources}
    assert sources[0]["url"] == "http://prometheus:9090"
    mounted = {config["target"] for config in compose["services"]["grafana"]["configs"]}
    assert f"{provider['options']['path']}/holdbook.json" in mounted
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in panels}) == len(panels)


def test_alerts_say_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].strip()
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_expressions_are_balanced(expression: str) -> None:
    """No parser of the language is at hand; what people get wrong by hand is mostly this."""
    bare = re.sub(r'"[^"]*"', "", expression)

    for opening, closing in ("()", "{}", "[]"):
        assert bare.count(opening) == bare.count(closing)
    assert names(expression) or "up" in bare
