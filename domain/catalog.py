"""Every aggregate there is. A new one is added here, and to nothing else that runs it."""

from __future__ import annotations

from typing import Any

from domain.access import SERVICE_ACCOUNT, TENANT
from domain.kernel.decider import Decider
from domain.quota import QUOTA

DECIDERS: tuple[Decider[Any], ...] = (QUOTA, TENANT, SERVICE_ACCOUNT)
