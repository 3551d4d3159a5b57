"""Downloads whose URL a stranger chose: only from the hosts that are named, at public addresses, looked up once."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from preprocessing import ImageError, allowed, download
from preprocessing.allowed import Allowed, is_public
from preprocessing.fetch import fetch

BODY = b"0123456789" * 50


class Handler(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Host']} {self.path}")
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server on this machine that counts as public; every name is its own."""
    Handler.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    resolve(monkeypatch, lambda host: ["127.0.0.1"])
    monkeypatch.setattr(allowed, "is_public", lambda address: True)
    yield server.server_port
    server.shutdown()
    server.server_close()


def resolve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], list[str]]) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host.replace(".", "").isdigit():
            return real(host, port, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer(host)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "198.18.0.1", "::", "::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


def test_a_named_host_is_asked(port: int) -> None:
    url = f"http://pictures.example:{port}/a.png"
    assert fetch(url, "image 1", Allowed([f"pictures.example:{port}"])) == BODY
    assert fetch(url, "image 1", Allowed([f"*.EXAMPLE:{port}"])) == BODY
    assert Handler.asked == [f"pictures.example:{port} /a.png"] * 2


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example:{port}/",
        "http://pictures.example.evil.example:{port}/",
        "http://notpictures.example:{port}/",
        "http://pictures.example@evil.example:{port}/",
        "http://evil.example:{port}/@pictures.example",
        "http://pictures.example/",  # at a port that is not named
        "http://127.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://[::1]:{port}/",
        "http://pictures.example:{port}/to/http://evil.example:{port}/",
        "http://pictures.example:{port}/to/http://127.0.0.1:{port}/",
        "http://pictures.example:{port}/to/http://pictures.example:1/",
    ],
)
def test_no_other_host_is_asked(port: int, url: str) -> None:
    with pytest.raises(ImageError, match="image 1: images may not be fetched from"):
        fetch(url.format(port=port), "image 1", Allowed([f"pictures.example:{port}"]))
    assert all(asked.startswith(f"pictures.example:{port} /to/") for asked in Handler.asked)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://pictures.example/a", "gopher://pictures.example/"])
def test_no_other_scheme_is_followed(port: int, target: str) -> None:
    with pytest.raises(ImageError, match="image 1: "):
        fetch(f"http://pictures.example:{port}/to/{target}", "image 1", Allowed([f"pictures.example:{port}"]))


def test_redirects_among_the_named_hosts_are_followed(port: int) -> None:
    url = f"http://a.example:{port}/to/http://b.example:{port}/x"
    assert fetch(url, "image 1", Allowed([f"a.example:{port}", f"b.example:{port}"])) == BODY


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["169.254.169.254"]])
def test_a_name_for_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    resolve(monkeypatch, lambda host: addresses)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was connected to"))
    with pytest.raises(ImageError, match="not public"):
        fetch("https://pictures.example/a.png", "image 1", Allowed(["pictures.example"]))


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that changes between look-ups (DNS rebinding) is looked up once."""
    looked_up: list[str] = []
    connected: list[tuple[str, int]] = []

    def answer(host: str) -> list[str]:
        looked_up.append(host)
        return ["93.184.216.34"] if len(looked_up) == 1 else ["127.0.0.1"]

    def connect(address: tuple[str, int], **_: Any) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError("refused")

    resolve(monkeypatch, answer)
    monkeypatch.setattr(download.socket, "create_connection", connect)
    with pytest.raises(ImageError, match="refused"):
        fetch("http://pictures.example/a.png", "image 1", Allowed(["pictures.example"]))
    assert (looked_up, connected) == (["pictures.example"], [("93.184.216.34", 80)])


def test_no_proxy_is_used(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert fetch(f"http://a.example:{port}/x", "image 1", Allowed([f"a.example:{port}"])) == BODY


def test_size_and_time_are_bounded(port: int) -> None:
    hosts = [f"a.example:{port}"]
    with pytest.raises(ImageError, match="larger than the limit"):
        fetch(f"http://a.example:{port}/x", "image 1", Allowed(hosts, max_bytes=len(BODY) - 1))
    with pytest.raises(ImageError, match="not downloaded within 0 s"):
        fetch(f"http://a.example:{port}/x", "image 1", Allowed(hosts, seconds=0))
