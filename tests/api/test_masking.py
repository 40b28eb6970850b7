"""What is masked in log lines, and what is not: by table, by property, and through the pipeline that programs log by."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.masking import mask, masked

ROOT = Path(__file__).parents[2]
KEY = f"hbk_{'0a' * 16}_{'1b' * 16}_0a1b2c3d_{'Z' * 43}"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLW9mLWl0"
BOT = "7123456789:AAFx-kzW3vZ0mYt8yDkqRr1QyqQw_abcdEf"

SECRETS = [
    "anna.petrova@example.com", "ANNA+tag@mail.example.co.uk", "anna@localhost", "anna%40example.com", "анна@почта.рф",
    "+7 (916) 123-45-67", "+14155550123", "8 916 123-45-67", "(916) 123-45-67", "79161234567", "+49 30 1234567",
    "203.0.113.77", "2001:db8:85a3::8a2e:370:7334", "fe80::1ff:fe23:4567:890a",
    KEY, KEY.replace("hbk", "hbr"), JWT, BOT, f"bot{BOT}", "hbs1.Zm9yLWV2ZXItc2VhbGVk",
    "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "said {} to us", "x={}", '{{"a": "{}"}}', "({})", "<{}>", "a, {}, b", "line\n{}\nline", "'{}'"])
def test_what_has_a_shape_is_masked_wherever_it_stands(secret: str, around: str) -> None:
    assert secret not in mask(around.format(secret))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("postgresql://holdbook:pa55word@db.example/h", "pa55word"),
        ("nats://user:pa55word@10.0.0.1:4222", "pa55word"),
        ("password=pa55word host=db", "pa55word"),
        ("{'password': 'pa55 word', 'a': 1}", "pa55 word"),
        ('{"refresh_token": "abcdefgh"}', "abcdefgh"),
        ("?init_data=query_id%3DAAA&x=1", "query_id"),
        ("Authorization: Bearer abcdef.ghijkl", "ghijkl"),
        ("Cookie: __Host-holdbook=abcdefgh", "abcdefgh"),
        ("duplicate key\nDETAIL:  Key (name)=(Anna Petrova) already exists.\n", "Anna"),
        ("[SQL: insert into x values (%s)]\n[parameters: ('Anna Petrova', 1)]\n(Background on this error)", "Anna"),
        (f"[parameters: ('Anna Petrova', {'?' * 20_000})]\n", "Anna"),
        ('invalid input syntax for type uuid: "Anna Petrova"', "Anna"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ],
)
def test_what_stands_behind_a_name_is_masked(text: str, secret: str) -> None:
    assert secret not in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "0f0e0d0c-0b0a-4908-8706-050403020100", "0f0e0d0c0b0a49088706050403020100", "0f0e0d0c-0b0a-4908-8706-050403020100:3",
        f"user:{'0a' * 16}@{'1b' * 8}", "2026-11-21T05:45:31.123456Z", "2026-11-21T05:45:31+03:00", "2026-11-21 05:45:31",
        "http://127.0.0.1:8080", "http://[::1]:8080", "0.0.0.0:8080", "partition 63, position 123456789", "1732167931",
        "quota.reserved", "projections.generations", "/v1/privacy/{subject}/erase", "holdbook_quota_1", "version 18.6", "50.25%",
        "12:34:56",
        "consumer process:webhooks stopped at 17", "urn:holdbook:problem:token.invalid", "tests/api/test_x.py::test_y",
    ],
)  # fmt: skip
def test_ids_and_moments_and_names_of_ours_stay(text: str) -> None:
    assert mask(text) == text


_edges = st.text(alphabet=" \n\t,;()[]{}<>'\"|", min_size=1, max_size=4)
_noise = st.text(max_size=60)
_local = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789._+-", min_size=1, max_size=30)
_emails = st.builds(lambda local, host, top: f"{local}@{host}.{top}", _local, st.from_regex(r"[a-z][a-z0-9-]{1,20}", fullmatch=True),
                    st.sampled_from(["com", "ru", "co.uk", "museum"]))  # fmt: skip
_phones = st.builds(lambda number: f"+{number}", st.integers(10**10, 10**12))
_addresses = st.ip_addresses(v=4).filter(lambda a: not a.is_loopback and not a.is_unspecified).map(str)
_keys = st.builds(
    lambda kind, secret: f"hb{kind}_{'0a' * 16}_{secret}",
    st.sampled_from("kri"),
    st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True),
)


@settings(max_examples=400)
@given(_noise, _edges, st.one_of(_emails, _phones, _addresses, _keys), _edges, _noise)
def test_nothing_planted_comes_through(before: str, left: str, secret: str, right: str, after: str) -> None:
    text = before + left + secret + right + after
    expected = (before + left + right + after).count(secret)

    assert mask(text).count(secret) <= expected


@given(st.uuids(), st.datetimes(), st.integers(0, 10**10))
def test_ids_are_left_alone(one: UUID, moment: object, number: int) -> None:
    for text in (str(one), one.hex, f"{one}:{number % 100}", f"position {number}" if number < 10**9 else "x"):
        assert mask(text) == text


@given(
    st.recursive(st.sampled_from(SECRETS), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("a"), inner), max_leaves=8)
)
def test_however_deep(value: object) -> None:
    told = json.dumps(masked(value), ensure_ascii=False)

    assert not any(secret in told for secret in SECRETS)


def test_a_field_is_masked_by_its_name_alone() -> None:
    assert masked({"password": "correct horse", "number": 5, "inner": {"token": "abc"}}) == {
        "password": "[secret]",
        "number": 5,
        "inner": {"token": "[secret]"},
    }


@pytest.mark.parametrize(
    "piece", ["a", "1:", "a@", "+1 ", "eyJ", "://", "1.1.", "password=", "f::", "-----BEGIN PRIVATE KEY-----", "[SQL: "]
)
def test_a_hostile_line_costs_no_more_than_its_length(piece: str) -> None:
    start = time.process_time()

    mask(piece * (1_000_000 // len(piece)))

    assert time.process_time() - start < 2  # of the processor, thirty times what the slowest piece takes


_PROGRAM = """
import logging, structlog
from api import logs
from api.settings import Settings
logs.configure(Settings(log_level="debug", log_json=%s))
log = structlog.get_logger("x")
log.info("it was anna@example.com", address="203.0.113.77", nested={"phone": ["+14155550123"]}, key=b"%s")
logging.getLogger("library").warning("from %%s with %%s", "203.0.113.77", "Bearer abcdef.ghijkl")
try:
    try:
        raise ValueError("duplicate key\\nDETAIL:  Key (email)=(Anna Petrova) already exists.")
    except ValueError as error:
        raise RuntimeError("anna@example.com") from error
except RuntimeError:
    log.exception("failed")
    logging.getLogger("library").exception("failed too")
"""


@pytest.mark.parametrize("as_json", [True, False])
def test_through_the_pipeline_exceptions_included(as_json: bool) -> None:
    program = _PROGRAM % (as_json, KEY)

    lines = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stderr

    for secret in ("anna@example.com", "203.0.113.77", "+14155550123", KEY, "ghijkl", "Anna Petrova"):
        assert secret not in lines
    assert lines.count("RuntimeError") >= 2
    assert "[e-mail]" in lines
    if as_json:
        assert all(json.loads(line)["level"] for line in lines.splitlines())


def test_uuids_of_every_kind_stay() -> None:
    assert all(mask(str(each)) == str(each) for each in [uuid4() for _ in range(2_000)])
