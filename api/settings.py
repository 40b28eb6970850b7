"""Every setting, read from the environment variable of its name behind ``HOLDBOOK_``.

Any of them may stand in a file instead, as container engines hand out secrets: ``HOLDBOOK_DATABASE_URL_FILE`` names the file with the value
of ``HOLDBOOK_DATABASE_URL``. A secret in the environment can be read by whoever may list the machine's processes or containers.
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from eventstore.requests import Options

PREFIX = "HOLDBOOK_"


class SettingsError(Exception):
    """A setting cannot be read. Names the variable, never its value."""


def _of_networks(text: str) -> str:
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            ip_network(part)
        except ValueError:
            raise ValueError("Give networks such as 10.0.0.0/8, separated by commas.") from None
    return text


Networks = Annotated[str, AfterValidator(_of_networks)]


class _Files(PydanticBaseSettingsSource):
    """Values from the files that variables ending in ``_FILE`` name; a line end at the end of a file is not part of the value."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """See pydantic-settings."""
        name = PREFIX + field_name.upper()
        path = os.environ.get(f"{name}_FILE")
        if path is None:
            return None, field_name, False
        if name in os.environ:
            raise SettingsError(f"Both {name} and {name}_FILE are set; which one holds is not guessed.")
        try:
            value = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"The file that {name}_FILE names cannot be read: {type(error).__name__}.") from error
        if not value:
            raise SettingsError(f"The file that {name}_FILE names is empty.")
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All values found."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """What can be set. The defaults run one machine well."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    database_url: str | None = Field(
        None, description="Address of a PostgreSQL server, 15 or newer. Without it an embedded one is started.", repr=False
    )
    data: Path | None = Field(None, description="Directory of the embedded PostgreSQL. Default: the user's data directory.")
    partitions: int = Field(64, ge=1, le=4096, description="Partitions of a new store; fixed when it is initialised.")
    host: str = Field("127.0.0.1", description="Address the HTTP server listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the HTTP server listens on; 0 takes any that is free.")
    connections: int = Field(4, ge=2, le=64, description="Connections of the process to the log.")
    body_limit_bytes: int = Field(2**20, ge=1024, description="Largest request body; a larger one is answered with 413.")
    queue_commands: int = Field(20_000, ge=1, description="Commands that may wait in one partition's queue before 503.")
    queue_bytes: int = Field(64 * 2**20, ge=1024, description="Bytes of bodies that may wait in one partition's queue before 503.")
    batch_commands: int = Field(1_000, ge=1, description="Most commands in one transaction.")
    batch_bytes: int = Field(8 * 2**20, ge=1024, description="Most bytes of bodies in one transaction.")
    cached_streams: int = Field(50_000, ge=1, description="Streams whose state each partition's writer keeps in memory.")
    snapshot_every: int = Field(1_000, ge=0, description="Events of a stream between snapshots; 0 makes none.")
    requests_at_once: int = Field(5_000, ge=1, description="Requests served at once; more are answered with 503.")
    trusted_proxies: Networks = Field(
        "",
        description="Networks of reverse proxies, separated by commas, whose X-Forwarded-For and X-Forwarded-Proto are believed. "
        "Without any, nobody's are.",
    )
    hsts_seconds: int = Field(
        31_536_000,
        ge=0,
        description="Strict-Transport-Security of answers to requests that came by TLS, here or at a trusted proxy; 0: none.",
    )
    rate_token_per_second: int = Field(20, ge=0, description="Requests a second of one session of a person, by process; 0: no limit.")
    rate_user_per_minute: int = Field(100, ge=0, description="Requests a minute of one person, by process; 0: no limit.")
    rate_key_per_second: int = Field(
        0, ge=0, description="Requests a second by one API key, which is a service that acts for many, by process; 0: no limit."
    )
    rate_address_per_minute: int = Field(
        30, ge=0, description="Requests a minute that sign in and the like from one client address, by process; 0: no limit."
    )
    url_limit_bytes: int = Field(8192, ge=64, description="Longest address of a request; a longer one is answered with 414.")
    header_limit_bytes: int = Field(32_768, ge=256, description="Most bytes of a request's header lines; more are answered with 431.")
    header_limit_count: int = Field(100, ge=4, description="Most header lines of a request; more are answered with 431.")
    header_seconds: float = Field(10.0, gt=0, description="From the first byte of a request to the end of its headers; then 408.")
    body_seconds: float = Field(30.0, gt=0, description="Longest silence inside a request's body; then 408.")
    idle_seconds: float = Field(75.0, gt=0, description="For how long a connection without a request is kept open.")
    connections_at_once: int = Field(
        10_000, ge=1, description="Client connections of the process at once; more are answered with 503 and closed."
    )
    worker_port: int | None = Field(
        None, ge=0, le=65535, description="Port on which a worker answers /livez, /readyz and /metrics. Without it there is none."
    )
    drain_delay_seconds: float = Field(0.0, ge=0, description="From SIGTERM to the end of accepting; /readyz says no meanwhile.")
    drain_seconds: float = Field(20.0, gt=0, description="Longest time given to requests under way when shutting down.")
    ready_lag_events: int = Field(100_000, ge=1, description="Events read models may be behind before /readyz says no.")
    audit_key: str | None = Field(
        None,
        description="The Ed25519 private key that audit exports are signed with, as PEM. Better given as HOLDBOOK_AUDIT_KEY_FILE. "
        "Default with the embedded PostgreSQL: audit.key in the data directory, made when it is first needed.",
        repr=False,
    )
    default_device_limit: int = Field(3, ge=0, le=100, description="Devices that may be bound to a person whom no license gives a number.")
    master_key: str | None = Field(
        None,
        description="What the stored keys of tenants, people and tokens are wrapped with: lines `id:base64 of 32 bytes`, of which the "
        "first wraps and all unwrap. Better given as HOLDBOOK_MASTER_KEY_FILE. Default with the embedded PostgreSQL: master.key in the "
        "data directory, made on the first start; on a server of your own there is no default.",
        repr=False,
    )
    token_keys: str | None = Field(
        None,
        description="RSA private keys that access tokens are signed with, as PEM; the first signs, all verify. Better given as "
        "HOLDBOOK_TOKEN_KEYS_FILE, which is read again when it changes. Without it the database has them, made on the first start.",
        repr=False,
    )
    token_issuer: str = Field("holdbook", min_length=1, max_length=200, description="The issuer that access tokens name (iss).")
    token_audience: str = Field("holdbook", min_length=1, max_length=200, description="The audience that access tokens are for (aud).")
    token_seconds: int = Field(600, ge=10, le=86_400, description="Seconds for which an access token is good.")
    session_seconds: int = Field(
        30 * 86_400,
        ge=60,
        le=366 * 86_400,
        description="Seconds after which one must sign in again in any case; of sessions begun from now on.",
    )
    session_idle_seconds: int = Field(
        7 * 86_400, ge=60, le=366 * 86_400, description="Seconds without use after which a session ends; of sessions begun from now on."
    )
    insecure_cookies: bool = Field(
        False, description="Whether cookies of browser sessions are sent without TLS too. For development on one's own machine."
    )
    default_tenant: UUID | None = Field(
        None, description="The tenant that the key commands, and people who sign in, mean when none is named."
    )
    tenant_hosts: dict[str, UUID] = Field(
        {}, description='Which tenant\'s people sign in under which host name, as JSON: {"app.example.com": "<tenant id>"}.'
    )
    telegram_max_age_seconds: int = Field(
        300, ge=1, le=86_400, description="For how long after it was made a proof of Telegram is accepted."
    )
    webhook_source: str = Field(
        "holdbook", min_length=1, max_length=200, pattern=r"^[!-~]+$", description="The CloudEvents source that messages of webhooks carry."
    )
    webhook_allow_private: bool = Field(False, description="Whether webhooks may lead to loopback, private and other addresses not public.")
    webhook_allow_http: bool = Field(False, description="Whether webhooks may have addresses without TLS.")
    webhook_keep_days: int = Field(30, ge=1, description="Days for which deliveries that ended can be listed and replayed.")
    nats_url: str | None = Field(
        None,
        description="NATS server to publish the log to, 2.12 or newer with JetStream; several of a cluster separated by commas. "
        "Without it nothing is published.",
        repr=False,
    )
    nats_port: int = Field(0, ge=0, le=65535, description="Port of the nats-server of holdbook up --nats; 0 keeps the one it had first.")
    nats_stream: str = Field("HOLDBOOK", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The JetStream stream that holds the log.")
    nats_replicas: int = Field(1, ge=1, le=5, description="Servers of a cluster that keep the stream: 1, 3 or 5.")
    nats_keep_days: float | None = Field(
        None, gt=0, description="Days for which the stream keeps events; a partition's last one stays. Without it: for ever."
    )
    nats_source: str = Field(
        "holdbook", min_length=1, max_length=200, pattern=r"^[!-~]+$", description="The CloudEvents source that published events carry."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    log_json: bool = Field(True, description="Log lines as JSON; otherwise for people.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code first, then the environment and the files it names."""
        return init_settings, env_settings, _Files(settings_cls)

    def writer_options(self) -> Options:
        """The bounds of each partition's writer."""
        return Options(
            queue_commands=self.queue_commands,
            queue_bytes=self.queue_bytes,
            batch_commands=self.batch_commands,
            batch_bytes=self.batch_bytes,
            cached_streams=self.cached_streams,
            snapshot_every=self.snapshot_every,
        )
