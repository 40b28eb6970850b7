"""One attempt over real HTTP: what counts as taken, and that nothing a receiver does can hurt."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.webhooks import retrying, signing
from adapters.webhooks.addresses import Addresses
from adapters.webhooks.sending import TIMEOUT_SECONDS, Answer, Sender, retry_after
from tests.support.certificates import Authority
from tests.support.receiver import Received, Receiver, Reply, receiving

NAME = "hooks.example.test"
ENDPOINT = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")
BODY = b'{"id":"x"}'


class Resolver:
    """Answers with the next address at each question, and with the last one for ever."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.asked = list(addresses), 0

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked += 1
        return [self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]]


def sender(resolver: Resolver | None = None, *, tls: ssl.SSLContext | None = None, timeout_seconds: float = 60) -> Sender:
    allowed = Addresses(allow_private=True, allow_http=True, resolve=resolver or Resolver("127.0.0.1"))
    return Sender(allowed, tls=tls, timeout_seconds=timeout_seconds)


async def send(to: Sender, url: str, headers: Mapping[str, str] | None = None) -> Answer:
    return await to.send(url, headers or {}, BODY, datetime.now(UTC))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def answers(receiver: Receiver, reply: Reply) -> None:
    receiver.answer = lambda _: reply


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (200, None), (201, None), (204, None), (299, None), (301, "redirect"), (307, "redirect"), (400, "status"), (404, "status"),
        (410, "status"), (429, "status"), (500, "status"), (503, "status"),
    ],
)  # fmt: skip
async def test_a_message_is_taken_when_the_status_says_so(receiver: Receiver, status: int, trouble: str | None) -> None:
    answers(receiver, Reply(status, {"Location": "/elsewhere"} if status < 400 else {}))

    answer = await send(sender(), receiver.url)

    assert (answer.status, answer.trouble) == (status, trouble)
    assert answer.gone == (status == 410)
    assert len(receiver.received) == 1


async def test_what_arrives_is_what_was_sent(receiver: Receiver) -> None:
    await send(sender(), receiver.url.replace("127.0.0.1", NAME) + "?a=1&b=%2F", {"Content-Type": "application/x", "webhook-id": "7"})

    (received,) = receiver.received
    assert (received.path, received.body) == ("/in?a=1&b=%2F", BODY)
    assert received.headers["host"] == f"{NAME}:{receiver.port}"
    assert (received.headers["content-type"], received.headers["webhook-id"]) == ("application/x", "7")
    assert not {"cookie", "authorization", "referer"} & set(received.headers)


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    with receiving() as other:
        answers(receiver, Reply(307, {"Location": other.url}))
        assert (await send(sender(), receiver.url)).trouble == "redirect"
        assert other.connections == 0


async def test_no_cookie_comes_back(receiver: Receiver) -> None:
    answers(receiver, Reply(200, {"Set-Cookie": "spy=1"}))
    to = sender()

    await send(to, receiver.url)
    await send(to, receiver.url)

    assert "cookie" not in receiver.received[1].headers


async def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await send(sender(), receiver.url)).trouble is None
        assert proxy.connections == 0


async def test_a_receiver_that_does_not_answer_costs_the_time_out_and_no_more(receiver: Receiver) -> None:
    release = threading.Event()
    answers(receiver, Reply(hold=release))
    began = time.monotonic()

    answer = await send(sender(timeout_seconds=0.5), receiver.url)

    release.set()
    assert answer == Answer(None, "timeout")
    assert time.monotonic() - began < TIMEOUT_SECONDS, "what it would be without"


async def test_an_answer_that_drips_has_the_same_limit() -> None:
    """Each byte comes soon after the last one, so that only a limit on all of it together helps."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not ended.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = await send(sender(timeout_seconds=0.6), f"http://127.0.0.1:{listener.getsockname()[1]}/")
        ended.set()
        thread.join()
    assert answer == Answer(None, "timeout")


async def test_an_endless_body_is_left_after_its_beginning(receiver: Receiver) -> None:
    answers(receiver, Reply(200, endless=True))

    assert await send(sender(), receiver.url) == Answer(200, None)


async def test_a_connection_that_breaks_is_trouble(receiver: Receiver) -> None:
    answers(receiver, Reply(drop=True))
    assert (await send(sender(), receiver.url)).trouble in ("connection", "protocol")

    receiver.close()
    assert await send(sender(), receiver.url) == Answer(None, "connection")


async def test_what_is_no_http_is_trouble() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"\x00\x01\x02 220 smtp ready\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        answer = await send(sender(), f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()
    assert answer == Answer(None, "protocol")


async def test_a_name_that_does_not_resolve_is_trouble() -> None:
    class Nobody(Resolver):
        async def __call__(self, host: str) -> Sequence[str]:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

    assert await send(sender(Nobody("")), f"http://{NAME}/") == Answer(None, "dns")


async def test_a_refused_address_gets_no_connection(receiver: Receiver) -> None:
    strict = Sender(Addresses(allow_http=True, resolve=Resolver("127.0.0.1")))

    assert await send(strict, receiver.url) == Answer(None, "address")
    assert await send(strict, receiver.url.replace("127.0.0.1", NAME)) == Answer(None, "address")
    assert receiver.connections == 0


async def test_the_connection_goes_to_the_address_that_was_checked(receiver: Receiver) -> None:
    """A name that has another address the second time it is asked for: it is not asked for a second time."""
    rebinding = Resolver("127.0.0.2", "127.0.0.1")

    answer = await send(sender(rebinding), receiver.url.replace("127.0.0.1", NAME))

    assert answer == Answer(None, "connection")
    assert (rebinding.asked, receiver.connections) == (1, 0)


async def test_a_second_address_is_tried_when_the_first_has_nobody(receiver: Receiver) -> None:
    class Both(Resolver):
        async def __call__(self, host: str) -> Sequence[str]:
            return ["127.0.0.2", "127.0.0.1"]

    assert (await send(sender(Both("")), receiver.url.replace("127.0.0.1", NAME))).trouble is None


async def test_the_certificate_that_counts_is_the_names(authority: Authority) -> None:
    context = authority.server(NAME)
    asked_for: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    with receiving(tls=context) as receiver:
        to = sender(tls=authority.trusting())
        url = f"https://{NAME}:{receiver.port}/in"

        assert await send(to, url) == Answer(204, None)
        assert await send(to, url.replace(NAME, "other.example.test")) == Answer(None, "tls")
        assert await send(to, url.replace(NAME, "127.0.0.1")) == Answer(None, "tls")
        assert await send(sender(), url) == Answer(None, "tls"), "nobody vouches for this authority"

        assert len(receiver.received) == 1
        assert receiver.received[0].headers["host"] == f"{NAME}:{receiver.port}"
    assert asked_for[0] == NAME


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("120", 120.0), ("0", 0.0), ("-1", None), ("soon", None), ("1.5", None), ("9" * 40, 999_999_999.0), ("\u0665", None)],
)
def test_retry_after_is_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, datetime.now(UTC)) == seconds


def test_retry_after_is_a_date() -> None:
    now = datetime(2027, 3, 28, 0, 30, tzinfo=UTC)

    assert retry_after(format_datetime(now + timedelta(minutes=2), usegmt=True), now) == 120
    assert retry_after(format_datetime(now - timedelta(minutes=2), usegmt=True), now) is None
    assert retry_after("Sun, 28 Mar 2027 00:32:00", now) is None


# Signatures


def test_a_signature_is_what_the_library_expects(receiver: Receiver) -> None:
    first, second = (signing.secret(b"k" * 32, ENDPOINT, number) for number in (1, 2))
    headers = signing.headers("m:0", datetime.now(UTC), BODY, [second, first])
    received = Received("/", headers, BODY)

    assert received.signed_by(first)
    assert received.signed_by(second)
    assert not received.signed_by(signing.secret(b"k" * 32, ENDPOINT, 3))
    assert not Received("/", headers, BODY + b" ").signed_by(first)
    assert not Received("/", {**headers, "webhook-id": "m:1"}, BODY).signed_by(first)


def test_the_example_of_the_specification() -> None:
    headers = signing.headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC),
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_every_tenant_endpoint_and_number_has_a_secret_of_its_own() -> None:
    keys, endpoints = (b"a" * 32, b"b" * 32), (ENDPOINT, UUID(int=7))

    secrets = {signing.secret(key, endpoint, number) for key in keys for endpoint in endpoints for number in (1, 2, 12)}

    assert len(secrets) == 12
    assert signing.secret(keys[0], ENDPOINT, 1) == signing.secret(keys[0], ENDPOINT, 1)


# The schedule


NOW = datetime(2027, 3, 28, 0, 30, tzinfo=UTC)


@given(st.text(max_size=40))
def test_attempts_go_on_for_about_three_days_and_grow_apart(message_id: str) -> None:
    moments = [NOW]
    while (following := retrying.next_attempt(len(moments), moments[-1], message_id)) is not None:
        moments.append(following)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]

    assert 10 <= len(moments) <= 20
    assert timedelta(hours=70) <= moments[-1] - NOW <= timedelta(hours=82)
    assert gaps[0] < 10
    assert all(later > earlier / (1 + retrying.JITTER) for earlier, later in pairwise(gaps)), "no shorter, jitter aside"


@given(st.integers(1, len(retrying.DELAYS)), st.floats(0, 1e12))
def test_a_receiver_may_ask_for_more_time_and_not_for_less(attempts: int, seconds: float) -> None:
    own, asked = (retrying.next_attempt(attempts, NOW, "m", wanted) for wanted in (None, seconds))

    assert own is not None
    assert asked is not None
    assert asked >= own
    assert asked >= NOW + timedelta(seconds=min(seconds, 3600))
    assert asked <= max(own, NOW + timedelta(seconds=3600 * (1 + retrying.JITTER)))
