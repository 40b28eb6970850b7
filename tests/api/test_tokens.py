"""Access tokens: what is accepted, what is not, and the keys behind them."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from api.problems import Problem
from api.token_keys import (
    BadTokenKeys,
    DatabaseTokenKeys,
    GivenTokenKeys,
    TokenKey,
    fresh_for_table,
    fresh_key,
    jwk_of,
    keys_of_pem,
    of_private,
    public_of_jwk,
)
from api.tokens import LEEWAY_SECONDS, LONGEST, REREAD_SECONDS, STALE_SECONDS, UNKNOWN_SECONDS, Tokens
from eventstore.master import LocalMasterKeys, NoMasterKey, WrongMasterKey, new_master_key
from eventstore.signing_keys import RotationUnderWay, SigningKeys
from eventstore.store import Store
from tests.api.conftest import Site
from tests.support.till import TILL

NOW = 1_800_000_000


class Clock:
    """Both clocks, moved by the test."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


class Source:
    """Keys that the test changes, and how often they were read."""

    def __init__(self, *keys: TokenKey) -> None:
        self.keys, self.reads = keys, 0
        self.broken = False

    async def read(self) -> tuple[TokenKey, ...]:
        self.reads += 1
        if self.broken:
            raise ConnectionError
        return self.keys


@pytest.fixture(scope="module")
def key() -> TokenKey:
    return of_private(fresh_key())


@pytest.fixture(scope="module")
def other_key() -> TokenKey:
    return of_private(fresh_key())


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tokens_of(clock: Clock, source: Source) -> Tokens:
    return Tokens(source, issuer="issuer", audience="audience", seconds=600, clock=clock, monotonic=clock)


@pytest.fixture
def tokens(key: TokenKey, clock: Clock) -> Tokens:
    return tokens_of(clock, Source(key))


def private(key: TokenKey) -> RSAPrivateKey:
    assert key.private is not None
    return key.private


def pem_of(key: TokenKey) -> str:
    return private(key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


async def refused(tokens: Tokens, text: str) -> str:
    with pytest.raises(Problem) as raised:
        await tokens.verify(text)
    assert raised.value.status == 401
    assert 'error="invalid_token"' in raised.value.headers["WWW-Authenticate"]
    assert len(text) < 40 or text not in str(raised.value.body())
    return raised.value.code


async def test_a_token_says_what_was_put_into_it(tokens: Tokens, key: TokenKey) -> None:
    text = await tokens.mint({"sub": "someone", "tid": "tenant"})

    assert jwt.get_unverified_header(text) == {"alg": "RS256", "kid": key.kid, "typ": "at+jwt"}
    claims = await tokens.verify(text)
    assert (claims["sub"], claims["tid"], claims["iss"], claims["aud"]) == ("someone", "tenant", "issuer", "audience")
    assert (claims["iat"], claims["nbf"], claims["exp"]) == (NOW, NOW, NOW + 600)
    assert claims["jti"] != (await tokens.verify(await tokens.mint({"sub": "someone"})))["jti"]


async def test_what_was_verified_before_cannot_be_changed_by_who_asked(tokens: Tokens) -> None:
    text = await tokens.mint({"sub": "someone"})
    (await tokens.verify(text))["sub"] = "another"

    assert (await tokens.verify(text))["sub"] == "someone"


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def hs256_with_the_public_key(key: TokenKey, claims: dict[str, Any]) -> str:
    """By hand: a library refuses to sign with such a secret."""
    head = f"{encoded({'alg': 'HS256', 'typ': 'at+jwt', 'kid': key.kid})}.{encoded(claims)}"
    secret = key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = hmac.digest(secret, head.encode(), "sha256")
    return f"{head}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def claims_of(**changed: Any) -> dict[str, Any]:
    told = {"iss": "issuer", "aud": "audience", "sub": "someone", "iat": NOW, "nbf": NOW, "exp": NOW + 600, **changed}
    return {name: value for name, value in told.items() if value is not None}


def signed(key: TokenKey, claims: dict[str, Any], **header: Any) -> str:
    told = {"kid": key.kid, "typ": "at+jwt", **header}
    return jwt.encode(claims, private(key), header.pop("alg", "RS256"), {name: value for name, value in told.items() if value is not None})


Forger = Callable[[TokenKey, TokenKey], str]


def without(name: str) -> Forger:
    return lambda key, _: signed(key, claims_of(**{name: None}))


ATTACKS: dict[str, Forger] = {
    "alg none": lambda key, _: f"{encoded({'alg': 'none', 'typ': 'at+jwt', 'kid': key.kid})}.{encoded(claims_of())}.",
    "alg none, the signature of a genuine one": lambda key, _: (
        f"{encoded({'alg': 'none', 'typ': 'at+jwt', 'kid': key.kid})}.{encoded(claims_of())}.{signed(key, claims_of()).split('.')[2]}"
    ),
    "HS256 with the public key": lambda key, _: hs256_with_the_public_key(key, claims_of()),
    "another algorithm of the same key": lambda key, _: signed(key, claims_of(), alg="RS512"),
    "PSS instead of PKCS 1": lambda key, _: signed(key, claims_of(), alg="PS256"),
    "another's key under our id": lambda key, other: signed(other, claims_of(), kid=key.kid),
    "another's key under its own id": lambda _, other: signed(other, claims_of()),
    "another's key, brought along": lambda key, other: signed(other, claims_of(), kid=key.kid, jwk=jwk_of(other.public)),
    "another's key, to be fetched": lambda key, other: signed(other, claims_of(), kid=key.kid, jku="https://example.org/jwks.json"),
    "another's certificate": lambda key, other: signed(other, claims_of(), kid=key.kid, x5u="https://example.org/x5u.pem"),
    "no key id": lambda key, _: signed(key, claims_of(), kid=None),
    "a key id that is no text": lambda key, _: f"{encoded({'alg': 'RS256', 'typ': 'at+jwt', 'kid': 7})}.{encoded(claims_of())}.AAAA",
    "a path as key id": lambda key, _: signed(key, claims_of(), kid="../../dev/null"),
    "a token of another kind": lambda key, _: signed(key, claims_of(), typ="JWT"),
    "an extension that must be understood": lambda key, _: signed(key, claims_of(), crit=["b64"], b64=True),
    "another issuer": lambda key, _: signed(key, claims_of(iss="someone else")),
    "another audience": lambda key, _: signed(key, claims_of(aud="someone else")),
    "issued in the future": lambda key, _: signed(key, claims_of(iat=NOW + LEEWAY_SECONDS + 1)),
    "not yet valid": lambda key, _: signed(key, claims_of(nbf=NOW + LEEWAY_SECONDS + 1)),
    "an end that is no number": lambda key, _: signed(key, claims_of(exp="never")),
    "an end that is true": lambda key, _: signed(key, claims_of(exp=True)),
    "an end that is infinite": lambda key, _: signed(key, claims_of(exp=float("inf"))),
    **{f"without {name}": without(name) for name in ("iss", "aud", "sub", "iat", "nbf", "exp")},
    "other claims under the same signature": lambda key, _: ".".join(
        part if place != 1 else encoded(claims_of(sub="another")) for place, part in enumerate(signed(key, claims_of()).split("."))
    ),
    "without its signature": lambda key, _: signed(key, claims_of()).rsplit(".", 1)[0] + ".",
    "two parts": lambda key, _: signed(key, claims_of()).rsplit(".", 1)[0],
    "nothing": lambda *_: "",
    "points": lambda *_: "..",
    "no base64": lambda *_: "ü.ü.ü",
    "a list as header": lambda *_: f"{encoded(['RS256'])}.{encoded(claims_of())}.AAAA",
    "deep nesting as header": lambda *_: f"{base64.urlsafe_b64encode(b'[' * 2_000).decode().rstrip('=')}.e30.AAAA",
    "half a character": lambda *_: "\ud800.e30.AAAA",
    "longer than any of ours": lambda key, _: signed(key, claims_of(more="x" * LONGEST)),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_attacks(attack: str, tokens: Tokens, key: TokenKey, other_key: TokenKey) -> None:
    forged = ATTACKS[attack](key, other_key)

    assert await refused(tokens, forged) == "auth.token_invalid"
    assert await refused(tokens, forged) == "auth.token_invalid", "also the second time"


async def test_what_the_attacks_differ_from_is_accepted(tokens: Tokens, key: TokenKey) -> None:
    assert (await tokens.verify(signed(key, claims_of())))["sub"] == "someone"
    assert (await tokens.verify(signed(key, claims_of(iat=NOW + LEEWAY_SECONDS, nbf=NOW + LEEWAY_SECONDS))))["sub"] == "someone"


async def test_every_bit_of_a_token_counts(tokens: Tokens) -> None:
    text = await tokens.mint({"sub": "someone"})
    accepted = []
    for place in range(0, len(text), 3):
        changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        try:
            await tokens.verify(changed)
        except Problem:
            continue
        accepted.append(place)

    # The last character has bits that are no part of the signature.
    assert set(accepted) <= {len(text) - 1}


async def test_an_expired_one_has_an_answer_of_its_own_also_when_it_was_verified_before(tokens: Tokens, clock: Clock) -> None:
    text = await tokens.mint({"sub": "someone"})
    await tokens.verify(text)

    clock.now += 600 + LEEWAY_SECONDS - 1
    await tokens.verify(text)
    clock.now += 1

    assert await refused(tokens, text) == "auth.token_expired"


async def test_a_key_that_is_retired_accepts_nothing_any_more_also_what_was_verified_before(clock: Clock, key: TokenKey) -> None:
    tokens = tokens_of(clock, Source(key._replace(verifies_until=NOW + 100)))
    text = await tokens.mint({"sub": "someone"})
    await tokens.verify(text)
    assert len(await tokens.published()) == 1

    clock.now += 100

    assert await refused(tokens, text) == "auth.token_invalid"
    assert await tokens.published() == []


async def test_a_key_that_was_taken_away_accepts_nothing_once_the_keys_were_read_again(
    clock: Clock, key: TokenKey, other_key: TokenKey
) -> None:
    source = Source(key)
    tokens = tokens_of(clock, source)
    text = await tokens.mint({"sub": "someone"})
    await tokens.verify(text)

    source.keys = (other_key,)
    clock.now += STALE_SECONDS + 1

    assert await refused(tokens, text) == "auth.token_invalid"


async def test_a_new_key_is_published_before_it_signs(clock: Clock, key: TokenKey, other_key: TokenKey) -> None:
    tokens = tokens_of(clock, Source(key, other_key._replace(signs_from=NOW + 60)))

    assert [each["kid"] for each in await tokens.published()] == [key.kid, other_key.kid]
    assert jwt.get_unverified_header(await tokens.mint({}))["kid"] == key.kid
    clock.now += 60
    assert jwt.get_unverified_header(await tokens.mint({}))["kid"] == other_key.kid


async def test_an_unknown_key_id_has_the_keys_read_again_but_not_at_every_request(clock: Clock, key: TokenKey, other_key: TokenKey) -> None:
    source = Source(key)
    tokens = tokens_of(clock, source)
    await tokens.mint({})
    source.keys = (key, other_key)
    text = signed(other_key, claims_of())

    assert await refused(tokens, text) == "auth.token_invalid"
    clock.now += UNKNOWN_SECONDS + 0.1
    assert (await tokens.verify(text))["sub"] == "someone"

    reads = source.reads
    for number in range(50):
        await refused(tokens, signed(other_key, claims_of(), kid=f"invented{number}"))
    assert source.reads == reads
    assert REREAD_SECONDS > UNKNOWN_SECONDS


async def test_when_the_keys_cannot_be_read_the_old_ones_do_for_a_while(clock: Clock, key: TokenKey) -> None:
    source = Source(key)
    tokens = tokens_of(clock, source)
    text = await tokens.mint({"sub": "someone"})
    source.broken = True

    clock.now += STALE_SECONDS - 1
    await tokens.verify(text)
    clock.now += 2

    with pytest.raises(ConnectionError):
        await tokens.verify(text)


async def test_keys_from_a_file_are_read_again_when_it_changes(tmp_path: Path, key: TokenKey, other_key: TokenKey) -> None:
    file = tmp_path / "keys.pem"
    file.write_text(pem_of(key))
    source = GivenTokenKeys(file.read_text(), file)
    assert [each.kid for each in await source.read()] == [key.kid]

    file.write_text(pem_of(other_key) + pem_of(key))
    assert [each.kid for each in await source.read()] == [key.kid, other_key.kid], "the last is the one that signs"

    file.write_text("this is no key")
    assert [each.kid for each in await source.read()] == [key.kid, other_key.kid]
    file.unlink()
    assert [each.kid for each in await source.read()] == [key.kid, other_key.kid]


@pytest.mark.parametrize("what", ["nothing", "text", "short", "twice", "public"])
def test_what_are_no_keys_is_refused_and_not_repeated(what: str, key: TokenKey) -> None:
    short = generate_private_key(65537, 1024)  # noqa: S505  # too short, which is what is tested
    texts = {
        "nothing": "",
        "text": "secret words",
        "short": pem_of(TokenKey("", short.public_key(), short)),
        "twice": pem_of(key) * 2,
        "public": key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    }

    with pytest.raises(BadTokenKeys, match="HOLDBOOK_TOKEN_KEYS") as raised:
        keys_of_pem(texts[what])

    assert "secret words" not in str(raised.value)


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    """The example of RFC 7638, section 3.1."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W"
        "-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08q"
        "NLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    assert jwk_of(public_of_jwk({"n": n, "e": "AQAB"}))["kid"] == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


async def stored(dsn: str, master: LocalMasterKeys | None = None) -> Store:
    return await Store.open(dsn, [TILL], wakeups=False, master=master)


def table_of(store: Store) -> SigningKeys:
    assert store.pool is not None
    return SigningKeys(store.pool, store.master)


async def test_two_processes_that_start_at_once_have_one_key(database_dsn: str) -> None:
    stores = [await stored(database_dsn) for _ in range(2)]
    sources = [DatabaseTokenKeys(table_of(store)) for store in stores for _ in range(3)]

    found = await asyncio.gather(*(source.read() for source in sources))

    assert len({tuple(key.kid for key in keys) for keys in found}) == 1
    assert len(found[0]) == 1
    first, second = (Tokens(source) for source in sources[:2])
    assert (await second.verify(await first.mint({"sub": "someone"})))["sub"] == "someone"
    for store in stores:
        await store.drain()


async def test_of_first_keys_that_come_at_once_one_stays(database_dsn: str) -> None:
    store = await stored(database_dsn)
    table, news = table_of(store), [fresh_for_table() for _ in range(4)]
    assert store.pool is not None
    for _ in range(10):
        await asyncio.gather(*(table.make_first(new) for new in news))
        async with store.pool.connection() as conn:
            assert (await conn.execute("delete from signing_key")).rowcount == 1
    await store.drain()


async def test_a_rotation_publishes_signs_and_drops(database_dsn: str) -> None:
    store = await stored(database_dsn)
    table = table_of(store)
    old, new = fresh_for_table(), fresh_for_table()
    await table.make_first(old)
    await table.make_first(new)
    assert [row.kid for row in await table.read()] == [old.kid]

    await table.rotate(new, overlap_seconds=600, token_seconds=605)
    with pytest.raises(RotationUnderWay):
        await table.rotate(fresh_for_table(), overlap_seconds=600, token_seconds=605)

    before, after = await table.read()
    assert (before.kid, after.kid) == (old.kid, new.kid)
    assert before.signs_until == after.signs_from
    assert before.verifies_until is not None
    assert 605 < (before.verifies_until - after.signs_from).total_seconds() < 700
    assert before.private == old.private, "it signs until the overlap is over"
    assert store.pool is not None
    async with store.pool.connection() as conn:
        await conn.execute(
            "update signing_key set signs_from = signs_from - interval '15 min', signs_until = signs_until - interval '15 min'"
        )
    assert [row.private for row in await _twice(table)] == [None, new.private]
    async with store.pool.connection() as conn:
        await conn.execute("update signing_key set verifies_until = verifies_until - interval '30 min'")
    assert [row.kid for row in await _twice(table)] == [new.kid]
    async with store.pool.connection() as conn:
        assert await (await conn.execute("select kid from signing_key")).fetchall() == [(new.kid,)]
    await store.drain()


async def _twice(table: SigningKeys) -> list[Any]:
    await table.read()
    return await table.read()


async def test_a_private_key_is_stored_wrapped(database_dsn: str) -> None:
    master = LocalMasterKeys(new_master_key())
    store = await stored(database_dsn, master)
    (key,) = await DatabaseTokenKeys(table_of(store)).read()
    assert store.pool is not None
    async with store.pool.connection() as conn:
        row = await (await conn.execute("select wrapped, public::text from signing_key")).fetchone()
    assert row is not None
    assert b"PRIVATE KEY" not in bytes(row[0])
    assert b"PRIVATE KEY" in await master.unwrap(master.current, bytes(row[0]), b"holdbook signing" + key.kid.encode())
    assert '"d"' not in row[1]
    with pytest.raises(WrongMasterKey):
        await SigningKeys(store.pool, LocalMasterKeys(new_master_key())).read()
    with pytest.raises(NoMasterKey):
        await SigningKeys(store.pool, None).read()
    await store.drain()


@pytest.mark.asyncio(loop_scope="module")
async def test_the_key_set_is_public_and_can_be_kept(site: Site) -> None:
    answer = await site.client.get("/.well-known/jwks.json")

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    (key,) = answer.json()["keys"]
    assert set(key) == {"kty", "use", "alg", "kid", "n", "e"}
    again = await site.client.get("/.well-known/jwks.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", answer.headers["ETag"])


@pytest.mark.asyncio(loop_scope="module")
async def test_whoever_has_the_key_set_can_check_a_token(site: Site) -> None:
    """As a client of another language would, with what is published alone."""
    text = await site.app.state.edge.tokens.mint({"sub": "someone"})
    answer: httpx.Response = await site.client.get("/.well-known/jwks.json")

    keys = jwt.PyJWKSet.from_dict(answer.json())
    claims = jwt.decode(text, keys[jwt.get_unverified_header(text)["kid"]], algorithms=["RS256"], audience="holdbook", issuer="holdbook")

    assert claims["exp"] - time.time() <= site.app.state.edge.settings.token_seconds
