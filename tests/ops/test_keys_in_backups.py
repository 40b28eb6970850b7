"""A backup holds keys as the store has them: wrapped, and empty where somebody was erased."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from api.token_keys import DatabaseTokenKeys
from eventstore.backup.restoring import restore
from eventstore.backup.saving import backup
from eventstore.master import LocalMasterKeys, WrongMasterKey, new_master_key
from eventstore.sealing import Erased
from eventstore.signing_keys import SigningKeys
from eventstore.store import Store
from tests.conftest import MASTER_KEY
from tests.ops.conftest import TENANTS, delete_tenant
from tests.support.till import TILL

LIVING, ERASED = UUID(int=1), UUID(int=2)


async def test_what_is_sealed_opens_in_a_restored_store_and_erased_people_stay_erased(
    database_dsn: str, tmp_path: Path, empty_database: Callable[[], str]
) -> None:
    master = LocalMasterKeys(MASTER_KEY)
    store = await Store.open(database_dsn, [TILL], master=master)
    tenant_id, deleted = TENANTS[:2]
    living, erased = [await store.sealing.seal(tenant_id, person_id, "test", "anna@example.org") for person_id in (LIVING, ERASED)]
    await store.sealing.seal(deleted, LIVING, "test", "anna@example.org")
    await store.sealing.shred(tenant_id, ERASED)
    assert store.pool is not None
    (signing,) = await DatabaseTokenKeys(SigningKeys(store.pool, store.master)).read()
    key = await store.tenant_key(tenant_id)
    await store.drain()
    await delete_tenant(database_dsn, deleted)

    backup(database_dsn, tmp_path / "backup")
    restore(target := empty_database(), tmp_path / "backup")

    with pytest.raises(WrongMasterKey):
        await Store.open(target, [TILL], master=LocalMasterKeys(new_master_key()))
    restored = await Store.open(target, [TILL], master=master)
    assert await restored.tenant_key(tenant_id) == key
    assert await restored.sealing.open(tenant_id, LIVING, "test", living) == "anna@example.org"
    assert await restored.sealing.open(tenant_id, ERASED, "test", erased) is None
    with pytest.raises(Erased):
        await restored.sealing.seal(tenant_id, ERASED, "test", "anna@example.org")
    assert restored.pool is not None
    assert [each.kid for each in await DatabaseTokenKeys(SigningKeys(restored.pool, restored.master)).read()] == [signing.kid]
    with psycopg.connect(target) as conn:
        assert conn.execute("select count(*) from subject_key where tenant_id = %s", (deleted,)).fetchone() == (0,), "it was deleted"
    await restored.drain()
