"""Writes `docs/reference/` from the code: events, refusals, settings, command line, OpenAPI. Run by `make docs`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import typer.main

from api import problems
from api.app import create_app
from api.cli import app as cli
from api.settings import Settings
from domain.catalog import DECIDERS
from domain.identity.permissions import GRANTS, KEY_PERMISSIONS, PERMISSIONS, ROLES
from domain.kernel.decider import Event, Refused, Rejected
from eventstore.codec import stored_type
from eventstore.store import Store

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
_MADE = "<!-- Made by `make docs`. Change the code instead. -->\n\n"


def pages() -> dict[str, str]:
    """Every page of the reference by file name."""
    return {
        "events.md": _events(),
        "refusals.md": _refusals(),
        "settings.md": _settings(),
        "cli.md": _cli(),
        "roles.md": _roles(),
        "openapi.json": json.dumps(_openapi(), indent=2, ensure_ascii=False) + "\n",
    }


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def events() -> list[type[Event]]:
    """Every event class, in the order of the aggregates."""
    return [Refused, *(cls for decider in DECIDERS for cls in decider.events)]


def refusals() -> list[type[Rejected]]:
    """Every refusal, by code."""
    found = {cls for decider in DECIDERS for cls in decider.refusals}
    return sorted(found, key=lambda cls: cls.code)


def _prose(cls: type[Any]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not getattr(hint, "__args__", None) else str(hint)
    return re.sub(r"\b(?:[a-z_]+\.)+", "", text).replace("|", "\\|")


def _openapi() -> dict[str, Any]:
    nobody: Any = None  # the document is made without asking anything of the reader
    return create_app(Store.in_memory(DECIDERS), nobody, Settings()).openapi()


def _events() -> str:
    out = [_MADE, "# Events\n\nWhat the log holds, for ever. The name is the log's `type`; fields are the payload's.\n"]
    for cls in events():
        hints = get_type_hints(cls)
        out.append(f"\n## `{stored_type(cls.event_name, cls.event_version)}`\n\n{_prose(cls)}\n\n| field | type |\n|---|---|\n")
        out.extend(f"| `{field.name}` | {_type(hints[field.name])} |\n" for field in dataclasses.fields(cls))  # type: ignore[arg-type]  # every event is a dataclass
    return "".join(out)


def _refusals() -> str:
    out = [
        _MADE,
        "# Refusals\n\nEach comes as a problem document (RFC 9457) whose `type` is `urn:holdbook:problem:<code>`. A frozen one is"
        " recorded: the same key gets it for ever. The others leave nothing, and the same key may be tried again.\n\n"
        "| code | kind | frozen | meaning |\n|---|---|---|---|\n",
    ]
    for cls in refusals():
        kind, frozen = cls.status.replace("_", " "), "yes" if cls.frozen else "no"
        out += [f"| `{cls.code}` | {kind} | {frozen} | {_prose(cls)} |\n"]
    out.append("\n# Other problems\n\nThey leave nothing.\n\n| code | status | meaning |\n|---|---|---|\n")
    out.extend(f"| `{code}` | {status} | {title} |\n" for code, (status, title) in problems.CODES.items())
    return "".join(out)


def _roles() -> str:
    out = [
        _MADE,
        "# Roles and permissions\n\nA person has the permissions of the role, an API key those chosen when it was issued.\n\n"
        f"| permission | {' | '.join(ROLES)} | key | meaning |\n|---|{'---|' * (len(ROLES) + 2)}\n",
    ]
    for name, meaning in PERMISSIONS.items():
        marks = ["x" if name in may else "" for may in (*ROLES.values(), KEY_PERMISSIONS)]
        out.append(f"| `{name}` | {' | '.join(marks)} | {meaning} |\n")
    out.append(
        "\n# Who may give which role\n\nAnd take it away, suspend those who have it, and end their sessions. A key with `users:admin`"
        " counts as an admin.\n\n| role | may give |\n|---|---|\n"
    )
    out.extend(f"| {role} | {', '.join(sorted(GRANTS.get(role, ()))) or 'none'} |\n" for role in ROLES)
    return "".join(out)


def _settings() -> str:
    out = [_MADE, "# Settings\n\nAll come from the environment.\n\n| variable | default | meaning |\n|---|---|---|\n"]
    prefix = str(Settings.model_config.get("env_prefix", ""))
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        out.append(f"| `{(prefix + name).upper()}` | {default} | {field.description} |\n")
    return "".join(out)


def commands() -> list[tuple[str, Any]]:
    """Every command of the command line with its full name."""
    return _walk("holdbook", typer.main.get_command(cli))


def _walk(name: str, command: Any) -> list[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        return [(name, command)]
    return [found for key in sorted(below) for found in _walk(f"{name} {key}", below[key])]


def _cli() -> str:
    out = [_MADE, "# Command line\n"]
    for name, command in commands():
        out.append(f"\n## `{name}`\n\n{inspect.cleandoc(command.help or '')}\n")
        rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            out.append("\n| option | default | meaning |\n|---|---|---|\n" + "".join(rows))
    return "".join(out)


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        names = ", ".join(f"`{name}`" for name in parameter.opts)
    else:
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    default = parameter.default
    shown = "" if default is None or callable(default) or default in ((), [], False) else f"`{default}`"
    return f"| {names} | {shown} | {' '.join((getattr(parameter, 'help', None) or '').split())} |\n"


if __name__ == "__main__":
    main()
