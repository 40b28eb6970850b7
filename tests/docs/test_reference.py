"""What people look up is what the program does."""

from api.reference import FOLDER, commands, events, pages, refusals
from api.settings import Settings


def test_the_reference_is_what_the_code_says() -> None:
    stale = [name for name, text in pages().items() if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != text]

    assert stale == [], "run `make docs`"


def test_every_command_setting_event_and_refusal_is_documented_in_words() -> None:
    wordless = [name for name, command in commands() if not command.help]
    wordless += [f"{name} {p.name}" for name, command in commands() for p in command.params if p.name != "help" and not getattr(p, "help", None)]
    wordless += [name for name, field in Settings.model_fields.items() if not field.description]
    wordless += [cls.__name__ for cls in [*events(), *refusals()] if not (cls.__doc__ or "").strip() or (cls.__doc__ or "").startswith(cls.__name__ + "(")]

    assert wordless == []
    assert len(commands()) > 10 and len(events()) > 10 and len(refusals()) > 10
