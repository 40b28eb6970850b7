"""Proofs by Telegram: what is accepted, and every forgery that comes to mind."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.telegram.login import MAX_BYTES, Person, ProofRefused, check_init_data, check_widget

BOT = "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
OTHER_BOT = "110201544:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGE = 300
Fields = dict[str, str]


def lines(fields: Fields) -> bytes:
    return "\n".join(f"{name}={fields[name]}" for name in sorted(fields) if name != "hash").encode()


def by_widget(fields: Fields, token: str = BOT) -> Fields:
    """The fields with the hash that the Login Widget would give them."""
    return {**fields, "hash": hmac.new(sha256(token.encode()).digest(), lines(fields), sha256).hexdigest()}


def by_app(fields: Fields, token: str = BOT) -> Fields:
    """The fields with the hash that a Mini App would give them."""
    secret = hmac.new(b"WebAppData", token.encode(), sha256).digest()
    return {**fields, "hash": hmac.new(secret, lines(fields), sha256).hexdigest()}


def widget_fields(**changed: str) -> Fields:
    fields = {
        "id": "279058397", "first_name": "Ada", "last_name": "Lovelace", "username": "ada",
        "photo_url": "https://t.me/i/userpic/320/ada.jpg", "auth_date": str(int(NOW.timestamp()) - 10),
    }  # fmt: skip
    return {**fields, **changed}


USER = {
    "id": 279058397, "first_name": "Ada", "last_name": "Ло & вelace=\n", "username": "ada", "language_code": "ru",
    "is_premium": True, "allows_write_to_pm": True, "photo_url": "https://t.me/i/userpic/320/ada.svg",
}  # fmt: skip  # what a value may hold that must survive encoding


def app_fields(**changed: str) -> Fields:
    fields = {
        "query_id": "AAHdF6IQAAAAAN0XohDhrOrc",
        "user": json.dumps(USER, ensure_ascii=False, separators=(",", ":")),
        "auth_date": str(int(NOW.timestamp()) - 10),
        "chat_instance": "-3788475317572404878",
        "chat_type": "private",
        "signature": "zL-ucjNyREiHDE8aihFwpfR9aggP2xiAo3NSpfe-p7IbCisNlDKlo7Kb6G4D0Ao2mBrSgEk4maLSdv6MLIlADQ",
    }
    return {**fields, **changed}


def widget(fields: Fields, now: datetime = NOW) -> Person | str:
    try:
        return check_widget(fields, BOT, now, AGE)
    except ProofRefused as refused:
        return refused.reason


def app(text: str, now: datetime = NOW) -> Person | str:
    try:
        return check_init_data(text, BOT, now, AGE)
    except ProofRefused as refused:
        return refused.reason


def test_what_telegram_signed_names_the_person() -> None:
    signed, sent = by_widget(widget_fields()), by_app(app_fields())

    assert widget(signed) == Person(279058397, "Ada Lovelace", "ada", signed["hash"])
    assert app(urlencode(sent)) == Person(279058397, "Ada Ло & вelace=", "ada", sent["hash"])


def test_the_order_of_fields_and_the_way_they_are_encoded_mean_nothing() -> None:
    signed, sent = by_widget(widget_fields()), by_app(app_fields())

    assert isinstance(widget(dict(reversed(signed.items()))), Person)
    assert isinstance(app(urlencode(list(reversed(sent.items())))), Person)
    assert isinstance(app(urlencode(sent, quote_via=quote)), Person)


def test_fields_that_telegram_leaves_out_are_not_missed() -> None:
    bare = by_widget({"id": "5", "first_name": "Ada", "auth_date": widget_fields()["auth_date"]})
    without = by_app({name: value for name, value in app_fields().items() if name in ("user", "auth_date")})

    assert widget(bare) == Person(5, "Ada", None, bare["hash"])
    assert isinstance(app(urlencode(without)), Person)


def test_a_field_that_telegram_adds_one_day_is_covered_like_the_others() -> None:
    assert isinstance(widget(by_widget(widget_fields(verified_badge="1"))), Person)
    assert isinstance(app(urlencode(by_app(app_fields(start_param="x_1")))), Person)


SIGNED = by_widget(widget_fields())
SENT = by_app(app_fields())
HASH = SIGNED["hash"]
_CHANGES: list[Callable[[Fields], Fields]] = [
    *(lambda fields, name=name: {**fields, name: fields[name] + "0"} for name in SIGNED if name != "hash"),
    *(lambda fields, name=name: {key: value for key, value in fields.items() if key != name} for name in SIGNED if name != "hash"),
]


@pytest.mark.parametrize("change", _CHANGES)
def test_a_widget_field_changed_or_left_out_proves_nothing(change: Callable[[Fields], Fields]) -> None:
    assert widget(change(SIGNED)) == "hash"


@pytest.mark.parametrize("name", [name for name in SENT if name != "hash"])
def test_init_data_with_a_field_changed_or_left_out_proves_nothing(name: str) -> None:
    assert app(urlencode({**SENT, name: SENT[name] + "0"})) == "hash"
    assert app(urlencode({key: value for key, value in SENT.items() if key != name})) == "hash"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**SIGNED, "is_admin": "1"}, "hash"),
        ({**SIGNED, "first_name": SIGNED["last_name"], "last_name": SIGNED["first_name"]}, "hash"),
        (by_widget(widget_fields(), OTHER_BOT), "hash"),
        (by_app(widget_fields()), "hash"),
        ({**SIGNED, "hash": HASH.upper()}, "shape"),
        ({**SIGNED, "hash": HASH[:63]}, "shape"),
        ({**SIGNED, "hash": HASH + "0"}, "shape"),
        ({**SIGNED, "hash": HASH + "\n"}, "shape"),
        ({**SIGNED, "hash": ""}, "shape"),
        ({**SIGNED, "hash": "0" * 64}, "hash"),
        ({name: value for name, value in SIGNED.items() if name != "hash"}, "shape"),
        ({}, "shape"),
        ({**SIGNED, "first_name": "Ada\nid=1"}, "shape"),
        ({**SIGNED, "a=b": "c"}, "shape"),
        ({**SIGNED, "photo_url": "x" * MAX_BYTES}, "shape"),
        ({**SIGNED, **{f"field_{chr(97 + i % 26)}{chr(97 + i // 26)}": "" for i in range(50)}}, "shape"),
        ({**SIGNED, "first_name": "\ud800"}, "shape"),
        (by_widget(widget_fields(id="0")), "shape"),
        (by_widget(widget_fields(id="-5")), "shape"),
        (by_widget(widget_fields(id="5.0")), "shape"),
        (by_widget(widget_fields(id="\u0665")), "shape"),
        (by_widget(widget_fields(auth_date="soon")), "shape"),
        (by_widget(widget_fields(auth_date="1e9")), "shape"),
        (by_widget({"first_name": "Ada", "auth_date": widget_fields()["auth_date"]}), "shape"),
        (by_widget({"id": "5", "first_name": "Ada"}), "shape"),
    ],
)
def test_what_the_widget_never_gave_proves_nothing(fields: Fields, reason: str) -> None:
    assert widget(fields) == reason


def signed_text(**changed: str) -> str:
    return urlencode(by_app(app_fields(**changed)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (urlencode({**SENT, "can_send_after": "0"}), "hash"),
        (urlencode(by_app(app_fields(), OTHER_BOT)), "hash"),
        (urlencode(by_widget(app_fields())), "hash"),
        (urlencode({**SENT, "hash": SENT["hash"].upper()}), "shape"),
        (urlencode({**SENT, "hash": SENT["hash"][:-1]}), "shape"),
        (urlencode(SENT) + "&user=%7B%22id%22%3A1%7D", "shape"),
        ("user=%7B%22id%22%3A1%7D&" + urlencode(SENT), "shape"),
        (urlencode(SENT) + "&hash=" + SENT["hash"], "shape"),
        (urlencode(SENT) + "&" + "&".join(f"f{i}=" for i in range(60)), "shape"),
        (urlencode(SENT) + "&nothing", "shape"),
        ("", "shape"),
        ("%ff=1&" + urlencode(SENT), "shape"),
        ("x" * (MAX_BYTES + 1), "shape"),
        (signed_text(user="[]"), "shape"),
        (signed_text(user="{"), "shape"),
        (signed_text(user="[" * 4_000), "shape"),
        (signed_text(user='{"id":"279058397"}'), "shape"),
        (signed_text(user='{"id":true}'), "shape"),
        (signed_text(user='{"id":1.5}'), "shape"),
        (signed_text(user='{"id":-1}'), "shape"),
        (signed_text(user='{"first_name":"Ada"}'), "shape"),
        (urlencode(by_app({"auth_date": app_fields()["auth_date"]})), "shape"),
    ],
)
def test_init_data_that_no_mini_app_has_proves_nothing(text: str, reason: str) -> None:
    assert app(text) == reason


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(AGE, None), (AGE + 1, "age"), (-60, None), (-61, "future"), (10**9, "age"), (-(10**9), "future")],
)
def test_a_proof_is_good_for_a_while_and_not_from_the_future(seconds: int, reason: str | None) -> None:
    made = NOW - timedelta(seconds=seconds)
    date = str(int(made.timestamp()))
    found = [widget(by_widget(widget_fields(auth_date=date))), app(signed_text(auth_date=date))]

    assert [None if isinstance(each, Person) else each for each in found] == [reason, reason]


@given(st.text(max_size=200))
def test_whatever_is_sent_is_refused_and_breaks_nothing(text: str) -> None:
    assert isinstance(app(text), str)


@given(st.dictionaries(st.sampled_from([*SIGNED]), st.text(max_size=80), max_size=8))
def test_whatever_fields_are_sent_are_refused_and_break_nothing(fields: Fields) -> None:
    assert isinstance(widget(fields), str)
