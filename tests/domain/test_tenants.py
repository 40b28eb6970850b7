"""Tenants and keys: given events, when a command, then events or a refusal."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from domain.identity.operators import OPERATOR, Look, OperatorLooked, operator_stream
from domain.identity.permissions import KEY_PERMISSIONS
from domain.identity.service_accounts import SERVICE_ACCOUNT, IssueKey, KeyIssued, KeyRevoked, RevokeKey, ServiceAccount
from domain.identity.tenants import (
    TENANT,
    AddOwner,
    ChangeTenantSettings,
    CreateTenant,
    DeleteTenant,
    OwnerAdded,
    OwnerRemoved,
    RemoveOwner,
    ResumeTenant,
    SuspendTenant,
    TenantCreated,
    TenantDeleted,
    TenantResumed,
    TenantSettingsChanged,
    TenantSuspended,
)
from domain.kernel.decider import Command, Decider, Event, Rejected

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACME = UUID(int=7)
HASH = "ab" * 32


def then(decider: Decider[object], given: list[Event], when: Command) -> list[Event] | str:
    """What the command leads to: events, or the refusal's code and field."""
    state = decider.initial
    for event in given:
        state = decider.evolve(state, event)
    when.at = NOW
    try:
        return list(decider.decide(when, state))
    except Rejected as refusal:
        return f"{refusal.code} {refusal.field_name or ''}".strip()


def create(name: str = "Acme", zone: str = "Europe/Moscow") -> CreateTenant:
    return CreateTenant(tenant_id=ACME, name=name, zone=zone)


CREATED = TenantCreated(ACME, "Acme", "Europe/Moscow", NOW)


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], create(), [CREATED]),
        ([CREATED], create(), []),
        ([CREATED], create(name="Other"), "tenant.exists"),
        ([CREATED], create(zone="UTC"), "tenant.exists"),
        ([], create(name=""), "tenant.invalid name"),
        ([], create(name="x" * 101), "tenant.invalid name"),
        ([], create(zone="Mars/Olympus"), "tenant.invalid zone"),
        ([], create(zone="../etc/passwd"), "tenant.invalid zone"),
    ],
)
def test_a_tenant_is_created_once(given: list[Event], when: Command, expected: object) -> None:
    assert then(TENANT, given, when) == expected  # type: ignore[arg-type]  # state types differ by decider


ANNA, BORIS = UUID(int=1), UUID(int=2)
CHANGED = TenantSettingsChanged("Acme", "Europe/Moscow", "ru-RU", "RUB", "open", NOW)
ENDED, SUSPENDED, RESUMED = TenantDeleted(ACME, NOW), TenantSuspended(NOW), TenantResumed(NOW)
OWNED = [CREATED, OwnerAdded(ANNA, NOW)]


def settings(
    name: str = "Acme", zone: str = "Europe/Moscow", locale: str = "ru-RU", currency: str = "RUB", registration: str = "open"
) -> ChangeTenantSettings:
    return ChangeTenantSettings(name=name, zone=zone, locale=locale, currency=currency, registration=registration)


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([CREATED], settings(), [CHANGED]),
        ([CREATED, CHANGED], settings(), []),
        ([CREATED], settings(locale="en", currency="EUR", registration="invited"), []),
        ([CREATED], settings(locale="zh-Hant-TW"), [TenantSettingsChanged("Acme", "Europe/Moscow", "zh-Hant-TW", "RUB", "open", NOW)]),
        ([CREATED], settings(name=""), "tenant.invalid name"),
        ([CREATED], settings(zone="Mars/Olympus"), "tenant.invalid zone"),
        ([CREATED], settings(locale="russian"), "tenant.invalid locale"),
        ([CREATED], settings(locale="ru_RU"), "tenant.invalid locale"),
        ([CREATED], settings(currency="rub"), "tenant.invalid currency"),
        ([CREATED], settings(currency="RUBL"), "tenant.invalid currency"),
        ([CREATED], settings(registration="closed"), "tenant.invalid registration"),
        ([], settings(), "tenant.not_found"),
        ([CREATED, ENDED], settings(), "tenant.deleted"),
        ([CREATED], SuspendTenant(), [SUSPENDED]),
        ([CREATED, SUSPENDED], SuspendTenant(), []),
        ([CREATED, SUSPENDED], ResumeTenant(), [RESUMED]),
        ([CREATED], ResumeTenant(), []),
        ([], SuspendTenant(), "tenant.not_found"),
        ([CREATED, ENDED], ResumeTenant(), "tenant.deleted"),
        ([CREATED, SUSPENDED], DeleteTenant(tenant_id=ACME), [ENDED]),
    ],
)
def test_a_tenant_has_settings_and_may_be_suspended(given: list[Event], when: Command, expected: object) -> None:
    assert then(TENANT, given, when) == expected  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([CREATED], AddOwner(user_id=ANNA), [OwnerAdded(ANNA, NOW)]),
        (OWNED, AddOwner(user_id=ANNA), []),
        (OWNED, AddOwner(user_id=BORIS), [OwnerAdded(BORIS, NOW)]),
        (OWNED, RemoveOwner(user_id=ANNA), "tenant.last_owner"),
        (OWNED, RemoveOwner(user_id=BORIS), []),
        ([CREATED], RemoveOwner(user_id=ANNA), []),
        ([*OWNED, OwnerAdded(BORIS, NOW)], RemoveOwner(user_id=ANNA), [OwnerRemoved(ANNA, NOW)]),
        ([*OWNED, OwnerAdded(BORIS, NOW), OwnerRemoved(ANNA, NOW)], RemoveOwner(user_id=BORIS), "tenant.last_owner"),
        ([], AddOwner(user_id=ANNA), "tenant.not_found"),
    ],
)
def test_the_last_owner_stays(given: list[Event], when: Command, expected: object) -> None:
    assert then(TENANT, given, when) == expected  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("more", [[], [CHANGED], [SUSPENDED], [CHANGED, *OWNED[1:], SUSPENDED, RESUMED], [ENDED]])
def test_a_snapshot_of_a_tenant_forgets_nothing(more: list[Event]) -> None:
    state = TENANT.initial
    for event in [CREATED, *more]:
        state = TENANT.evolve(state, event)

    assert TENANT.thaw(TENANT.freeze(state)) == state


LOOKED = OperatorLooked("audit", NOW)
IN_THIS_MINUTE, BEFORE = OperatorLooked("audit", NOW + timedelta(seconds=59)), OperatorLooked("audit", NOW - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], Look(what="audit"), [LOOKED]),
        ([LOOKED], Look(what="audit"), []),
        ([IN_THIS_MINUTE], Look(what="audit"), []),
        ([BEFORE], Look(what="audit"), [LOOKED]),
        ([LOOKED], Look(what="users"), [OperatorLooked("users", NOW)]),
        ([], Look(what="anna@example.com"), "operator.look_invalid what"),
    ],
)
def test_an_operators_look_is_recorded_once_a_minute(given: list[Event], when: Command, expected: object) -> None:
    assert then(OPERATOR, given, when) == expected  # type: ignore[arg-type]  # as above


def test_an_operator_has_a_stream_in_each_tenant() -> None:
    assert operator_stream(ACME, ANNA) != operator_stream(UUID(int=8), ANNA)


def issue(
    key_id: str = "0a1b2c3d",
    secret_hash: str = HASH,
    scopes: tuple[str, ...] = ("usage:write",),
    name: str = "bot",
    expires_at: datetime | None = None,
) -> IssueKey:
    return IssueKey(key_id=key_id, secret_hash=secret_hash, scopes=scopes, name=name, expires_at=expires_at)


ISSUED = KeyIssued("0a1b2c3d", HASH, ("usage:write",), "bot", None, NOW)
REVOKED = KeyRevoked("0a1b2c3d", NOW)
LATER = NOW + timedelta(days=1)


@pytest.mark.parametrize(
    ("given", "when", "expected"),
    [
        ([], issue(), [ISSUED]),
        ([], issue(scopes=tuple(KEY_PERMISSIONS)), [KeyIssued("0a1b2c3d", HASH, tuple(KEY_PERMISSIONS), "bot", None, NOW)]),
        ([], issue(expires_at=LATER), [KeyIssued("0a1b2c3d", HASH, ("usage:write",), "bot", LATER, NOW)]),
        ([ISSUED], issue(), []),
        ([ISSUED], issue(secret_hash="cd" * 32), "service.key_exists"),
        ([ISSUED, REVOKED], issue(), "service.key_exists"),
        ([ISSUED], issue(key_id="ffffffff"), [KeyIssued("ffffffff", HASH, ("usage:write",), "bot", None, NOW)]),
        ([], issue(key_id="0A1B2C3D"), "service.key_invalid key_id"),
        ([], issue(secret_hash="secret"), "service.key_invalid secret_hash"),
        ([], issue(scopes=()), "service.key_invalid scopes"),
        ([], issue(scopes=("usage:write", "usage:write")), "service.key_invalid scopes"),
        ([], issue(scopes=("root",)), "service.key_invalid scopes"),
        ([], issue(name=""), "service.key_invalid name"),
        ([], issue(expires_at=NOW), "service.key_invalid expires_at"),
        ([], issue(expires_at=LATER.replace(tzinfo=None)), "service.key_invalid expires_at"),
        ([KeyIssued(f"{n:08x}", HASH, ("usage:read",), "k", None, NOW) for n in range(100)], issue(), "service.too_many_keys"),
        ([ISSUED], RevokeKey(key_id="0a1b2c3d"), [REVOKED]),
        ([ISSUED, REVOKED], RevokeKey(key_id="0a1b2c3d"), []),
        ([], RevokeKey(key_id="0a1b2c3d"), "service.key_not_found"),
    ],
)
def test_keys_are_issued_and_revoked_once(given: list[Event], when: Command, expected: object) -> None:
    assert then(SERVICE_ACCOUNT, given, when) == expected  # type: ignore[arg-type]  # as above


def test_a_revoked_key_is_not_found_and_the_others_stay() -> None:
    state = ServiceAccount()
    for event in (ISSUED, KeyIssued("ffffffff", HASH, ("usage:read",), "web", LATER, NOW), REVOKED):
        state = SERVICE_ACCOUNT.evolve(state, event)

    assert state.find("0a1b2c3d") is None
    other = state.find("ffffffff")
    assert other is not None
    assert other.valid(NOW)
    assert not other.valid(LATER)


def test_freezing_and_thawing_change_nothing() -> None:
    account = SERVICE_ACCOUNT.evolve(ServiceAccount(), ISSUED)
    tenant = TENANT.evolve(TENANT.initial, CREATED)

    assert SERVICE_ACCOUNT.thaw(SERVICE_ACCOUNT.freeze(account)) == account
    assert TENANT.thaw(TENANT.freeze(tenant)) == tenant
    assert TENANT.thaw(TENANT.freeze(TENANT.initial)) == TENANT.initial


def test_replies_hold_no_hash() -> None:
    reply = SERVICE_ACCOUNT.reply(issue(), ServiceAccount(), ServiceAccount(), [ISSUED])

    assert HASH not in str(reply)
