"""Every aggregate and every process there is. A new one is added here, and to nothing else that runs it."""

from __future__ import annotations

from typing import Any

from domain.consumers import CONSUMER
from domain.identity.service_accounts import SERVICE_ACCOUNT
from domain.identity.tenants import TENANT
from domain.kernel.decider import Decider
from domain.kernel.process import Process
from domain.quota import QUOTA
from domain.tasks import TASKS
from domain.webhooks import WEBHOOKS

DECIDERS: tuple[Decider[Any], ...] = (QUOTA, TENANT, SERVICE_ACCOUNT, CONSUMER, WEBHOOKS, TASKS)

PROCESSES: tuple[Process, ...] = ()
