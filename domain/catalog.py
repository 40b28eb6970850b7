"""Every aggregate and every process there is. A new one is added here, and to nothing else that runs it."""

from __future__ import annotations

from typing import Any

from domain.consumers import CONSUMER
from domain.identity.devices import DEVICES
from domain.identity.licenses import LICENSE
from domain.identity.logins import LOGIN
from domain.identity.operators import OPERATOR
from domain.identity.policies import POLICIES
from domain.identity.service_accounts import SERVICE_ACCOUNT
from domain.identity.sessions import SESSION
from domain.identity.signins import SIGNIN
from domain.identity.telegram_bots import TELEGRAM_BOT
from domain.identity.tenants import TENANT
from domain.identity.users import USER
from domain.kernel.decider import Decider
from domain.kernel.process import Process
from domain.privacy.consents import CONSENTS
from domain.privacy.people import PERSON
from domain.privacy.retention import RETENTION
from domain.quota import QUOTA
from domain.sender_account import SENDER
from domain.tasks import TASKS
from domain.webhooks import WEBHOOKS

DECIDERS: tuple[Decider[Any], ...] = (
    QUOTA, TENANT, SERVICE_ACCOUNT, CONSUMER, WEBHOOKS, TASKS,
    SENDER,
    PERSON, CONSENTS, RETENTION,
    SIGNIN, TELEGRAM_BOT,
    DEVICES, LICENSE,
    USER, LOGIN, OPERATOR,
    SESSION,
    POLICIES,
)  # fmt: skip

PROCESSES: tuple[Process, ...] = ()
