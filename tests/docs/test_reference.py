"""What people look up is what the program does."""

from api.reference import FOLDER, commands, events, pages, refusals
from api.settings import Settings


def test_the_reference_is_what_the_code_says() -> None:
    stale = [name for name, text in pages().items() if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != text]

    assert stale == [], "run `make docs`"


def test_every_command_setting_event_and_refusal_is_documented_in_words() -> None:
    wordless = [name for name, command in commands() if not command.help]
    parameters = [(name, parameter) for name, command in commands() for parameter in command.params if parameter.name != "help"]
    wordless += [f"{name} {parameter.name}" for name, parameter in parameters if not getattr(parameter, "help", None)]
    wordless += [name for name, field in Settings.model_fields.items() if not field.description]
    told = {cls.__name__: cls.__doc__ or "" for cls in [*events(), *refusals()]}
    wordless += [name for name, text in told.items() if not text.strip() or text.startswith(f"{name}(")]  # dataclasses make one up

    assert wordless == []
    assert min(len(commands()), len(events()), len(refusals())) > 10
