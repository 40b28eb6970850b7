"""Every address, one file for each kind of thing. A new command of a known kind is a body and a function in its file."""

from __future__ import annotations

from api.routes import batches, health, quotas, usage, views

ROUTERS = (usage.router, quotas.router, views.router, batches.router, health.router)
