"""What the log says of a person's session: whether it lives, and whether they may still come in by it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from domain.identity.devices import DEVICES, Devices, devices_stream
from domain.identity.sessions import SESSION, Session, SessionState, session_stream
from domain.identity.signins import SIGNIN, SignIn, signin_stream
from domain.identity.tenants import TENANT, Tenant, TenantState, tenant_stream
from domain.identity.users import USER, Active, Suspended, UserState, user_stream
from domain.kernel.decider import Decider
from eventstore.store import Store


class Standing(NamedTuple):
    """As of the moment it was read. ``refused`` is the code of the problem that keeps the person out, whatever the time is."""

    session: Session | None
    role: str
    refused: str | None

    def problem(self, at: datetime) -> str | None:
        """The code of what keeps the person out at that moment; None when they may come in."""
        if self.refused is not None:
            return self.refused
        return None if self.session is not None and self.session.alive(at) else "auth.session_ended"


async def read_standing(store: Store, tenant_id: UUID, user_id: UUID, session_id: UUID) -> tuple[Standing, bool]:
    """All that counts, in one reading; and whether there is, or was, such a session of this person's."""
    wanted: list[tuple[Decider[Any], str]] = [
        (SESSION, session_stream(session_id)),
        (USER, user_stream(user_id)),
        (TENANT, tenant_stream(tenant_id)),
        (SIGNIN, signin_stream(user_id)),
        (DEVICES, devices_stream(user_id)),
    ]
    session, user, tenant, signin, devices = [found.state for found in await store.states(tenant_id, wanted)]
    return _judged(user_id, session, user, tenant, signin, devices)


def _judged(
    user_id: UUID, session: SessionState, user: UserState, tenant: TenantState, signin: SignIn, devices: Devices
) -> tuple[Standing, bool]:
    if getattr(session, "user_id", None) != user_id or not isinstance(tenant, Tenant):
        return Standing(None, "", "auth.token_invalid"), False
    alive = session if isinstance(session, Session) else None
    role = user.role if isinstance(user, Active) else ""
    return Standing(alive, role, _refused(alive, user, tenant, signin, devices)), True


def _refused(session: Session | None, user: UserState, tenant: Tenant, signin: SignIn, devices: Devices) -> str | None:
    if session is None:
        return "auth.session_ended"
    if signin.signed_out_at is not None and session.started_at <= signin.signed_out_at:
        return "auth.session_ended"
    if not on_bound_device(session.device, session.started_at, devices):
        return "auth.session_ended"
    if tenant.suspended:
        return "auth.tenant_suspended"
    if isinstance(user, Suspended):
        return "auth.user_suspended"
    return None if isinstance(user, Active) else "auth.session_ended"


def on_bound_device(device: str | None, started_at: datetime, devices: Devices) -> bool:
    """Whether a session's device, if it has one, has been bound ever since it began; bound anew, it brings no old session back."""
    if device is None:
        return True
    bound = devices.known(device)
    return bound is not None and bound.bound_at <= started_at
