"""Every address, one file for each kind of thing. A new command of a known kind is a body and a function in its file."""

from __future__ import annotations

from api.routes import audit, batches, exports, health, quotas, usage, usage_days, views, webhooks

ROUTERS = (
    usage.router,
    quotas.router,
    views.router,
    usage_days.router,
    audit.router,
    exports.router,
    webhooks.router,
    batches.router,
    health.router,
)
