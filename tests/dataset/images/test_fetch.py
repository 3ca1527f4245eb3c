import asyncio
import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.addresses import is_public
from clipkit.dataset.images import fetch as fetch_module
from clipkit.dataset.images.fetch import Fetched, Fetcher, Visit, check_knobs, host_of, is_passing
from clipkit.dataset.images.hosts import Hosts
from clipkit.dataset.images.http1 import EndedError, Response
from clipkit.recipe import DownloadKnobs


async def fetch_one(fetcher: Fetcher, url: str) -> Fetched:
    """Visit after visit, each under a turn of its host, as a round does it for many URLs at once."""
    found: Fetched | Visit = fetcher.begin(url)
    while isinstance(found, Visit):
        host = host_of(found.url)
        try:
            while host and (seconds := fetcher.hosts.take(host).seconds):
                await asyncio.sleep(seconds)
        except EndedError as ended:
            return Fetched(ended.outcome)
        found = await fetcher.visit(found)
        if host:
            fetcher.hosts.leave(host)
    return found


def fetch_all(knobs: DownloadKnobs, *urls: str, tls: Path | None = None) -> list[Fetched]:
    """What becomes of the URLs, one after another, with one fetcher."""

    async def run() -> list[Fetched]:
        fetcher = Fetcher(knobs)
        if tls is not None:
            fetcher.connections.tls.load_verify_locations(tls)
        try:
            return [await fetch_one(fetcher, url) for url in urls]
        finally:
            fetcher.close()

    return asyncio.run(run())


def fetch_url(knobs: DownloadKnobs, url: str) -> Fetched:
    return fetch_all(knobs, url)[0]


def fetch(web: Any, path: str, **changes: Any) -> Fetched:
    return fetch_url(web.knobs(**changes), web.url(path))


def test_an_image_arrives_with_every_byte(web: Any) -> None:
    fetched = fetch(web, "/ok/1")
    assert fetched.outcome == "ok"
    assert fetched.image == b"\xff\xd8\xff\xe0" + b"/ok/1" * 40
    assert fetch(web, "/until-close/1").image == b"\xff\xd8\xff\xe0" + b"/until-close/1" * 40
    assert fetch(web, "/chunked").image == b"hello world"


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("/404", "not_found"),
        ("/410", "not_found"),
        ("/401", "forbidden"),
        ("/403", "forbidden"),
        ("/429", "http_error_429"),
        ("/500", "http_error_500"),
        ("/503", "http_error_503"),
        ("/418", "http_error_418"),
        ("/204", "http_error_204"),
        ("/empty", "empty"),
        ("/html", "not_image"),
        ("/nowhere", "redirects"),
        ("/loop", "redirects"),
        ("/cut", "connection"),
        ("/reset", "connection"),
        ("/hang-up", "connection"),
        ("/broken-chunks", "connection"),
        ("/garbage", "bad_response"),
        ("/many-headers", "bad_response"),
        ("/claims-long", "too_long"),
        ("/redirect?to=ftp://images.example/x", "bad_url"),
        ("/redirect?to=http://%5B::1", "bad_url"),
        ("/redirect?to=file:///etc/passwd", "bad_url"),
    ],
)
def test_every_misfortune_has_its_own_name(web: Any, path: str, outcome: str) -> None:
    assert fetch(web, path).outcome == outcome
    assert web.hits[path] == (6 if path == "/loop" else 1)


@pytest.mark.parametrize("path", ["/stall", "/drip", "/drip-headers", "/redirect?to=/stall", "/long"])
def test_the_deadline_holds_from_the_connection_to_the_last_byte(web: Any, path: str) -> None:
    started = time.monotonic()
    assert fetch(web, path, timeout_seconds=0.6, max_image_bytes=10**12).outcome == "timeout"
    # The claim is about time. Each of them goes on for a minute or for ever; a busy machine may add seconds.
    assert 0.5 < time.monotonic() - started < 30


def test_an_address_that_does_not_answer_and_a_resolver_that_hangs_end_at_the_deadline(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        knobs = web.knobs(connect_to={"images.example:80": f"127.0.0.1:{full.getsockname()[1]}"}, timeout_seconds=0.5)
        assert fetch_url(knobs, web.url("/ok")).outcome == "timeout"
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: web.stopping.wait(20) or answered.set())
    assert fetch_url(web.knobs(timeout_seconds=0.5), "http://slow.example/").outcome == "timeout"
    assert not answered.is_set()


def test_a_body_without_end_is_given_up_at_the_cap(web: Any) -> None:
    assert fetch(web, "/long", max_image_bytes=1_000_000).outcome == "too_long"
    image = fetch(web, "/ok/1").image
    assert image is not None
    assert fetch(web, "/ok/1", max_image_bytes=len(image)).outcome == "ok"
    assert fetch(web, "/ok/1", max_image_bytes=len(image) - 1).outcome == "too_long"
    assert fetch(web, "/until-close/1", max_image_bytes=100).outcome == "too_long"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web: Any, status: int) -> None:
    assert fetch(web, f"/redirect?status={status}&to=/ok/7").outcome == "ok"
    assert fetch(web, f"/redirect?status={status}&to={web.url('/ok/7')}").outcome == "ok"


def test_redirects_are_followed_as_often_as_the_knob_says(web: Any) -> None:
    assert fetch(web, "/steps/3", max_redirects=3).image == b"arrived"
    assert fetch(web, "/steps/3", max_redirects=2).outcome == "redirects"
    assert fetch(web, "/steps/0", max_redirects=0).image == b"arrived"


def test_the_deadline_is_one_for_all_redirects(web: Any) -> None:
    web.seconds_per_answer = 0.4
    assert fetch(web, "/steps/3", timeout_seconds=1.0).outcome == "timeout"
    assert fetch(web, "/steps/1", timeout_seconds=5.0).outcome == "ok"


def test_every_request_but_the_first_is_paced(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """robots.txt, ai.txt and two redirects; the first request for the picture came with the turn."""
    paced: list[str] = []

    async def pace(self: Hosts, host: str) -> None:
        paced.append(host)

    monkeypatch.setattr(Hosts, "pace", pace)
    assert fetch(web, "/steps/2").outcome == "ok"
    assert paced == ["images.example"] * 4


def test_retry_after_is_seconds_or_a_date() -> None:
    told = {value: fetch_module._retry_after(Response(429, [("retry-after", value)], None)) for value in ("7", " 120 ", "soon", "")}
    assert told == {"7": 7.0, " 120 ": 120.0, "soon": None, "": None}
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert fetch_module._retry_after(Response(503, [("retry-after", date)], None)) == pytest.approx(90, abs=3)
    past = format_datetime(datetime.now(UTC) - timedelta(days=9), usegmt=True)
    assert fetch_module._retry_after(Response(503, [("retry-after", past)], None)) == 0.0


# ------------------------------------------------------------------- addresses


def test_private_addresses_are_refused_however_they_are_reached(web: Any) -> None:
    private = f"http://127.0.0.1:{web.port}/ok/1"
    knobs = web.knobs()
    assert fetch_url(knobs, private).outcome == "private_address"
    assert fetch_url(knobs, f"http://localhost:{web.port}/ok/1").outcome == "private_address"
    assert fetch_url(knobs, f"http://2130706433:{web.port}/ok/1").outcome == "private_address"
    assert fetch_url(knobs, f"http://[::ffff:127.0.0.1]:{web.port}/ok/1").outcome == "private_address"
    assert fetch_url(knobs, "http://169.254.169.254/latest/meta-data/").outcome == "private_address"
    assert fetch_url(knobs, web.url(f"/redirect?to={private}")).outcome == "private_address"
    assert web.hits["/ok/1"] == 0
    assert fetch_url(web.knobs(allow_private_addresses=True), web.url(f"/redirect?to={private}")).outcome == "ok"


def test_a_name_that_resolves_to_a_private_address_is_refused_at_each_answer(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", web.port)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert fetch_url(web.knobs(), "http://rebinding.example/ok/1").outcome == "private_address"
    assert fetch_url(web.knobs(allow_private_addresses=True), "http://rebinding.example/ok/1").outcome == "ok"


def test_of_a_names_addresses_only_the_public_ones_are_tried(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [("127.0.0.2", 1), ("127.0.0.1", web.port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places])
    monkeypatch.setattr("clipkit.dataset.images.connections.is_public", lambda address: address == "127.0.0.2")
    assert fetch_url(web.knobs(), "http://mixed.example/ok/1").outcome == "connection"
    assert not web.hits
    assert fetch_url(web.knobs(allow_private_addresses=True), "http://mixed.example/ok/1").outcome == "ok"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
    ],
)
def test_which_addresses_are_public(address: str, *, public: bool) -> None:
    assert is_public(address) == public


def test_a_mapped_host_keeps_its_name_in_the_request(web: Any) -> None:
    echoed = fetch(web, "/echo", user_agent="clipkit-test/9 (mail@example.org)").image
    assert echoed is not None
    headers = echoed.decode()
    assert "Host: images.example\n" in headers
    assert "User-Agent: clipkit-test/9 (mail@example.org)\n" in headers
    knobs = web.knobs(connect_to={"IMAGES.example:8080": f"localhost:{web.port}"})
    echoed = fetch_url(knobs, "http://user:secret@images.EXAMPLE:8080/echo").image
    assert echoed is not None
    assert "Host: images.example:8080\n" in echoed.decode()
    assert "secret" not in echoed.decode()


def test_a_host_that_nobody_serves_is_named(web: Any) -> None:
    assert fetch(web, "/ok/1", connect_to={"images.example:80": "127.0.0.1:1"}).outcome == "connection"
    # Without a network the resolver itself cannot say whether the name exists.
    assert fetch_url(web.knobs(connect_to={}), "http://nothing.invalid/").outcome in ("no_such_host", "dns_failure")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "images.example/a.jpg",
        "/a.jpg",
        "ftp://images.example/a.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://",
        "http:///a.jpg",
        "http://[::1/a.jpg",
        "http://images.example:99999/",
        "http://images.example:x/",
        "http://exa mple/",
        "http://" + "a" * 70 + ".example/",
        "http://" + "é" * 70 + ".example/",
        "http://images.example/" + "a" * 9000,
        "http://images.example\r\nX: y/",
    ],
)
def test_what_is_no_url_is_a_bad_url(web: Any, url: str) -> None:
    assert fetch_url(web.knobs(), url).outcome in ("bad_url", "no_such_host", "dns_failure")
    assert not web.hits


def test_urls_as_people_write_them_are_fetched(web: Any) -> None:
    knobs = web.knobs()
    for path, asked in [
        ("/ok/a b.jpg", "/ok/a%20b.jpg"),
        ("/ok/né.jpg?q=é", "/ok/n%C3%A9.jpg?q=%C3%A9"),
        ("/ok/100%25.jpg#part", "/ok/100%25.jpg"),
        ("/ok/\x01.jpg", "/ok/%01.jpg"),
        ("/redirect?to=" + quote("/ok/é"), "/ok/%C3%A9"),
        ("/redirect-in-utf8", "/ok/%E7%8C%AB"),
    ]:
        assert fetch_url(knobs, "  " + web.url(path) + " ").outcome == "ok"
        assert web.hits[asked] == 1


def test_any_url_at_all_ends_in_an_outcome(web: Any) -> None:
    knobs = web.knobs(timeout_seconds=0.3)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.text(max_size=30), st.sampled_from(["", "http://", "https://", "http://127.0.0.1/", "http://images.example/ok/", "//"]))
    def any_url(text: str, start: str) -> None:
        assert fetch_url(knobs, start + text).outcome

    any_url()


# --------------------------------------------------------------------- opt-outs


def test_an_image_that_opts_out_is_left_out_unless_the_knob_says_otherwise(web: Any) -> None:
    assert fetch(web, "/robots?tag=noai") == Fetched("opted_out")
    assert fetch(web, "/robots?tag=otherbot:%20noai").outcome == "ok"
    assert fetch(web, "/robots?tag=otherbot:%20noai&tag=noindex") == Fetched("opted_out")
    assert fetch(web, "/robots?tag=mybot:%20noai", user_agent="MyBot/2.0 (me@example.org)") == Fetched("opted_out")
    assert fetch(web, "/redirect?to=/robots?tag=noml") == Fetched("opted_out")
    assert fetch(web, "/robots?tag=noai", obey_opt_outs=False).outcome == "ok"
    assert fetch(web, "/robots?tag=noindex&status=404") == Fetched("not_found")


def test_an_image_whose_rights_are_reserved_is_left_out(web: Any) -> None:
    assert fetch(web, "/reserved/1") == Fetched("opted_out")
    assert fetch(web, "/reserved/0").outcome == "ok"
    assert fetch(web, "/reserved/1", obey_opt_outs=False).outcome == "ok"


# -------------------------------------------------------------------------- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path / "both.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=images.example"
    words += f" -addext subjectAltName=DNS:images.example -keyout {path} -out {tmp_path / 'certificate.pem'}"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "certificate.pem").read_text())
    return path


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_certificates_are_checked_against_the_name_in_the_url(certificate: Path, tls_port: int) -> None:
    names = ("images.example", "another.example")
    knobs = DownloadKnobs(connect_to={f"{name}:443": f"127.0.0.1:{tls_port}" for name in names}, timeout_seconds=5)
    assert fetch_url(knobs, "https://images.example/") == Fetched("tls")
    # Known as a certificate of the host, it is good for that name alone.
    found = fetch_all(knobs, "https://images.example/", "https://another.example/", tls=certificate)
    assert found == [Fetched("ok", b"secret"), Fetched("tls")]


def test_a_server_without_tls_or_one_that_stalls_in_the_handshake_is_named(web: Any) -> None:
    assert fetch_url(web.knobs(connect_to={"a.example:443": f"127.0.0.1:{web.port}"}), "https://a.example/").outcome == "tls"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        knobs = web.knobs(connect_to={"a.example:443": f"127.0.0.1:{silent.getsockname()[1]}"}, timeout_seconds=0.5)
        assert fetch_url(knobs, "https://a.example/").outcome == "timeout"


# ------------------------------------------------------------------------ knobs


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (DownloadKnobs(connect_to={"a.example": "127.0.0.1:80"}), "`a.example`: write"),
        (DownloadKnobs(connect_to={"a.example:80": "127.0.0.1"}), "`127.0.0.1`: write"),
        (DownloadKnobs(connect_to={"a.example:80": "127.0.0.1:0"}), "`127.0.0.1:0`: write"),
        (DownloadKnobs(user_agent="a\r\nX: y"), "printable ASCII"),
        (DownloadKnobs(user_agent="né"), "printable ASCII"),
    ],
)
def test_knobs_that_make_no_request_are_refused(knobs: DownloadKnobs, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_knobs(knobs)


def test_what_may_pass_is_worth_another_round() -> None:
    passing = ["timeout", "connection", "dns_failure", "http_error_429", "http_error_500", "http_error_503"]
    passing += ["robots_unreachable", "host_busy", "host_down"]
    lasting = [
        "ok",
        "opted_out",
        "disallowed",
        "not_image",
        "not_found",
        "forbidden",
        "http_error_418",
        "too_long",
        "private_address",
        "bad_url",
        "redirects",
        "tls",
        "no_such_host",
    ]
    assert all(map(is_passing, passing))
    assert not any(map(is_passing, lasting))


def test_the_page_about_downloads_names_every_outcome_and_says_whether_it_may_pass() -> None:
    told = re.findall(r"`([a-zA-Z_]+)`", fetch_module.__doc__ or "")
    outcomes = {name for name in told if name.islower() or name == "http_error_NNN"}
    table = (Path(__file__).parents[3] / "docs" / "download.md").read_text().split("| outcome |")[1].split("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    named = {name: row[3].strip() for row in rows for name in re.findall(r"`([a-zA-Z_]+)`", row[1])}
    assert named.keys() == outcomes
    for name, again in named.items():
        if name != "http_error_NNN":  # 429 and 5xx
            assert is_passing(name) == (again == "yes"), name


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_that_opts_out_is_obeyed_and_not_followed(web: Any, status: int) -> None:
    assert fetch(web, f"/redirect?status={status}&to=/ok/1&tag=noai") == Fetched("opted_out")
    assert web.hits["/ok/1"] == 0
    assert fetch(web, f"/redirect?status={status}&to=/ok/1&tag=otherbot:%20noai").outcome == "ok"
    assert fetch(web, f"/redirect?status={status}&to=/ok/1&tag=noai", obey_opt_outs=False).outcome == "ok"


def test_a_fetcher_that_is_closed_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    assert fetch_url(DownloadKnobs(allow_private_addresses=True), "http://localhost:1/a.jpg").outcome == "connection"
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
