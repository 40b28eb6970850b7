"""``holdbook license`` against a real database."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from api.cli.common import run_with_store
from api.people import Profile, create_items, seal_profile
from eventstore.requests import Request
from eventstore.store import Store
from tests.cli.test_commands import environment, made, run  # noqa: F401  # the first is a fixture


@pytest.fixture
def person(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> UUID:  # noqa: F811  # the fixture, as pytest hands it on
    """Somebody in the default tenant."""
    made("init")
    tenant_id, user_id = UUID(made("tenant", "create", "Acme")), uuid4()
    monkeypatch.setenv("HOLDBOOK_DEFAULT_TENANT", str(tenant_id))

    async def work(store: Store, _: str) -> None:
        profile = await seal_profile(store.sealing, tenant_id, user_id, Profile("anna@example.com"))
        items = create_items(tenant_id, user_id, "member", profile, "ab" * 16)
        assert not (await store.submit(Request(tenant_id, uuid4(), items, b""))).refused

    run_with_store(work)
    return user_id


def test_a_plan_is_set_and_shown(person: UUID, tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    monthly = {"limit_id": "monthly", "amount": 100, "window": {"kind": "month"}}
    file.write_text(json.dumps({"tokens": {"zone": "Europe/Moscow", "limits": [monthly]}}))

    assert "active" in made(
        "license", "set", str(person), "--plan", "pro", "--devices", "2", "--limits", str(file), "--until", "2100-01-01"
    )
    shown = made("license", "show", str(person))

    assert "plan     pro" in shown
    assert "until    2100-01-01T00:00:00+00:00" in shown
    assert "devices  0 of 2" in shown
    assert "tokens  monthly  used 0 of 100, 100 left" in shown
    assert "pro" in made("license", "set", str(person), "--plan", "pro", "--devices", "1")
    assert "tokens" not in made("license", "show", str(person))


def test_what_makes_no_sense_is_told_in_words_and_sets_nothing(person: UUID, tmp_path: Path) -> None:
    broken, wrong = tmp_path / "broken.json", tmp_path / "wrong.json"
    broken.write_text("{")
    wrong.write_text(json.dumps({"tokens": {"limits": [{"limit_id": "a", "amount": -1}]}}))
    common = ("license", "set", str(person), "--plan", "pro", "--devices", "2")

    for arguments, told in (
        ((*common, "--limits", str(broken)), "cannot be read"),
        ((*common, "--limits", str(tmp_path / "missing.json")), "cannot be read"),
        ((*common, "--limits", str(wrong)), "limits.tokens.limits.0.amount"),
        ((*common, "--until", "2020-01-01"), "valid_until"),
        (("license", "set", str(uuid4()), "--plan", "pro", "--devices", "2"), "There is no such user"),
        (("license", "show", str(uuid4())), "There is no such user"),
    ):
        result = run(*arguments)
        assert result.exit_code != 0
        assert told in result.output, result.output

    assert "plan     -" in made("license", "show", str(person))
