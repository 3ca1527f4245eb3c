import http.client
import threading
import time
from pathlib import Path

import pytest

from clipkit.demo.server import PortTakenError, WebServer, serving
from clipkit.demo.truth import HOSTS, Picture, Text, Web

TEXTS = (Text("alt", "a red circle on a plain background"),)


def a_web(root: Path) -> Web:
    def picture(name: str, kind: str, **serve: object) -> Picture:
        file = f"shapes.example/images/{name}.jpg"
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(f"bytes of {name}".encode() * 100)
        return Picture(f"http://shapes.example/images/{name}.jpg", kind, file, TEXTS, serve=serve)

    moved = Picture(
        "http://shapes.example/go/1", "good", picture("target", "good").file, TEXTS,
        serve={"status": 302, "location": "http://shapes.example/images/target.jpg"},
    )  # fmt: skip
    pictures = (
        picture("good", "good"),
        picture("gone", "missing", status=410),
        picture("private", "noai-header", headers={"X-Robots-Tag": "noai"}),
        picture("page", "not-an-image", headers={"Content-Type": "text/html"}),
        picture("late", "slow", delay_seconds=20.0, drip=False),
        picture("drop", "slow", delay_seconds=20.0, drip=True),
        moved,
    )
    return Web(1, 0, "tiny", HOSTS, {}, {}, (), pictures)


@pytest.fixture
def server(tmp_path):
    with serving(a_web(tmp_path), tmp_path, dict.fromkeys(HOSTS, 0)) as running:
        yield running


def get(server: WebServer, path: str, *, host: str = "shapes.example", timeout: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["shapes.example"], timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_pictures_are_served_by_their_host_name_whatever_the_query(server):
    status, headers, body = get(server, "/images/good.jpg?w=160")
    assert (status, headers["Content-Type"], body) == (200, "image/jpeg", b"bytes of good" * 100)
    assert get(server, "/images/good.jpg", host="other.example")[0] == 404
    assert get(server, "/images/good.jpg", host="shapes.example:80")[0] == 200


def test_hosts_misbehave_as_the_truth_says(server):
    assert get(server, "/images/gone.jpg")[0] == 410
    assert get(server, "/images/private.jpg")[1]["X-Robots-Tag"] == "noai"
    assert get(server, "/images/page.jpg")[1]["Content-Type"] == "text/html"
    status, headers, _ = get(server, "/go/1")
    assert (status, headers["Location"]) == (302, "http://shapes.example/images/target.jpg")
    assert get(server, "/images/target.jpg")[0] == 200


@pytest.mark.parametrize("path", ["/", "/robots.txt", "/../../etc/passwd", "/images/../../web.json", "//etc/passwd", "/images/%2e%2e/x"])
def test_nothing_but_the_pictures_is_served(server, path):
    assert get(server, path)[0] == 404


def test_a_connection_is_kept_for_further_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["shapes.example"], timeout=5)
    for path, status in (("/images/good.jpg", 200), ("/images/gone.jpg", 410), ("/go/1", 302), ("/images/good.jpg", 200)):
        connection.request("GET", path, headers={"Host": "shapes.example"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_slow_hosts_outlast_a_timeout_before_the_answer_and_within_it(server):
    with pytest.raises(TimeoutError):
        get(server, "/images/late.jpg", timeout=0.3)
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["shapes.example"], timeout=5)
    connection.request("GET", "/images/drop.jpg", headers={"Host": "shapes.example"})
    answer = connection.getresponse()
    assert len(answer.read(20)) == 20
    connection.close()


def test_stopping_does_not_wait_for_the_slow_and_frees_the_ports(tmp_path):
    before = threading.active_count()
    with serving(a_web(tmp_path), tmp_path, dict.fromkeys(HOSTS, 0)) as running:
        waiting = http.client.HTTPConnection("127.0.0.1", running.ports["slow.example"], timeout=5)
        waiting.request("GET", "/images/late.jpg", headers={"Host": "shapes.example"})
        time.sleep(0.2)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    waiting.close()
    with serving(a_web(tmp_path), tmp_path, running.ports):
        pass
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_a_taken_port_is_named_and_the_others_are_given_back(tmp_path, server):
    ports = {**dict.fromkeys(HOSTS, 0), "slow.example": server.ports["slow.example"]}
    with pytest.raises(PortTakenError) as caught:
        WebServer(a_web(tmp_path), tmp_path, ports)
    assert caught.value.port == server.ports["slow.example"]
