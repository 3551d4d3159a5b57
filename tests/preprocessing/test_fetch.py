"""Downloads from servers that are slow, endless, devious or behind a proxy: they end in time, with a sentence."""

from __future__ import annotations

import base64
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing import ImageError, download, fetch, load_image

NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
STEP_S = 0.05

Serve = Callable[[socket.socket, bytes], None]


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(NOISE).save(file, "PNG")
    return file.getvalue()


PNG = png()


def answer(body: bytes = PNG, status: str = "200 OK", **headers: str) -> bytes:
    lines = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


class Server:
    """Answers each connection by a function of the socket and the request's head."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.serve: Serve = lambda client, request: client.sendall(answer())
        self.context: ssl.SSLContext | None = None
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        try:
            if self.context is not None:
                client = self.context.wrap_socket(client, server_side=True)
            request = b""
            while b"\r\n\r\n" not in request:
                if not (part := client.recv(4096)):
                    return
                request += part
            self.requests.append(request)
            self.serve(client, request)
        except OSError:  # the client has gone
            pass
        finally:
            client.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.socket.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time for all of a download, much for each part of it."""
    monkeypatch.setattr(fetch, "DEADLINE_S", 0.6)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time for each part of a download, much for all of it."""
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.4)


def drip(start: bytes, dripped: bytes) -> Serve:
    """Sends `start`, and then `dripped` byte by byte, as long as the client stays: a patient one never ends."""

    def serve(client: socket.socket, request: bytes) -> None:
        client.sendall(start)
        for byte in cycle(dripped):
            client.sendall(bytes([byte]))
            time.sleep(STEP_S)

    return serve


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "status": drip(b"", b"HTTP/1.1"),
    "header": drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunk size": drip(CHUNKED, b"0"),
    "chunk extension": drip(CHUNKED + b"5;a=", b"b"),
    "chunks": drip(CHUNKED, b"1\r\na\r\n"),
    "trailers": drip(CHUNKED + b"0\r\n", b"A: b\r\n"),
    "body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"a"),
    "endless body": drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
    "redirect": drip(b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n", b"a"),
}


@pytest.mark.parametrize("kind", DRIPS)
@pytest.mark.usefixtures("short")
def test_what_drips_ends_at_the_deadline(server: Server, kind: str) -> None:
    server.serve = DRIPS[kind]
    with pytest.raises(ImageError, match=rf"^{server.url}/a\.png: not downloaded within 0\.6 s; download it"):
        load_image(f"{server.url}/a.png")


@pytest.mark.usefixtures("short")
def test_slow_redirects_share_the_deadline(server: Server) -> None:
    def serve(client: socket.socket, request: bytes) -> None:
        time.sleep(0.15)
        client.sendall(answer(b"", "302 Found", Location=f"/{len(server.requests)}"))

    server.serve = serve
    with pytest.raises(ImageError, match="not downloaded within"):
        load_image(server.url)
    assert len(server.requests) <= 6  # each would be in time by itself, and more of them are allowed


def test_redirects_that_never_end(server: Server) -> None:
    server.serve = lambda client, request: client.sendall(answer(b"", "302 Found", Location=f"/{len(server.requests)}"))
    with pytest.raises(ImageError, match="the server answered 302"):
        load_image(server.url)


def test_a_redirect_to_an_image(server: Server) -> None:
    def serve(client: socket.socket, request: bytes) -> None:
        there = request.startswith(b"GET /b.png ")
        client.sendall(answer() if there else answer(b"moved", "301 Moved", Location="/b.png"))

    server.serve = serve
    assert np.array_equal(np.asarray(load_image(f"{server.url}/a.png")), NOISE)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA"])
def test_redirects_to_other_schemes_are_refused(server: Server, target: str) -> None:
    server.serve = lambda client, request: client.sendall(answer(b"", "302 Found", Location=target))
    with pytest.raises(ImageError, match=r"not allowed|unknown url type"):
        load_image(server.url)


@pytest.mark.parametrize("status", ["200 OK", "302 Found"])
def test_the_size_limit_holds_for_all_that_is_sent(
    server: Server, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 2**20)
    sent = 0

    def serve(client: socket.socket, request: bytes) -> None:
        nonlocal sent
        client.sendall(f"HTTP/1.1 {status}\r\nLocation: /b\r\n\r\n".encode())
        while True:
            sent += client.send(bytes(2**16))

    server.serve = serve
    with pytest.raises(ImageError, match="larger than the limit of 1 MiB"):
        load_image(server.url)
    assert sent < 32 * 2**20


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_answers(server: Server, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    server.serve = lambda client, request: client.sendall(answer(pack(PNG), Content_Encoding=encoding))
    assert np.array_equal(np.asarray(load_image(server.url)), NOISE)
    server.serve = lambda client, request: client.sendall(answer(b"none of it", Content_Encoding=encoding))
    with pytest.raises(ImageError, match="damaged download"):
        load_image(server.url)


def test_the_size_limit_holds_for_what_is_unpacked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 2**20)
    bomb = gzip.compress(bytes(2**26))
    assert len(bomb) < 2**17
    server.serve = lambda client, request: client.sendall(answer(bomb, Content_Encoding="gzip"))
    with pytest.raises(ImageError, match="larger than the limit of 1 MiB"):
        load_image(server.url)


@pytest.mark.usefixtures("impatient")
def test_a_look_up_that_hangs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait() and [])
    try:
        with pytest.raises(ImageError, match=r"no answer within 0\.4 s"):
            load_image("http://slow.example/a.png")
    finally:
        answered.set()


def test_a_look_up_that_fails(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ImageError, match=r"cannot be downloaded \(.*Name or service not known\)"):
        load_image("http://nowhere.example/a.png")


def test_through_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("https_proxy", server.url)
    assert np.array_equal(np.asarray(load_image("http://pictures.example/a.png")), NOISE)
    assert server.requests[0].startswith(b"GET http://pictures.example/a.png ")
    server.serve = lambda client, request: client.sendall(answer(b"", "403 Forbidden"))
    with pytest.raises(ImageError, match="403 Forbidden"):
        load_image("https://pictures.example/a.png")
    assert server.requests[1].startswith(b"CONNECT pictures.example:443 ")
    server.serve = drip(b"HTTP/1.1 200 Connection established\r\n", b"A: b\r\n")
    monkeypatch.setattr(fetch, "DEADLINE_S", 0.6)
    with pytest.raises(ImageError, match="not downloaded within"):
        load_image("https://pictures.example/a.png")


@pytest.fixture
def tls(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server behind a certificate that only this test trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(download, "_context", lambda: trusting)
    server.url = server.url.replace("http:", "https:")
    return server


def test_https(tls: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(np.asarray(load_image(f"{tls.url}/a.png")), NOISE)
    monkeypatch.setattr(fetch, "DEADLINE_S", 0.6)
    for kind in ("header", "chunk size", "body"):
        tls.serve = DRIPS[kind]
        with pytest.raises(ImageError, match="not downloaded within"):
            load_image(tls.url)


def test_certificates_are_checked(tls: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_context", ssl.create_default_context)
    with pytest.raises(ImageError, match=r"cannot be downloaded \(.*certificate"):
        load_image(tls.url)


@pytest.mark.usefixtures("impatient")
def test_a_handshake_that_hangs(server: Server) -> None:
    with pytest.raises(ImageError, match=r"no answer within 0\.4 s"):  # the server waits for a request in plain text
        load_image(server.url.replace("http:", "https:"))


def test_downloads_leave_no_socket_open(
    server: Server, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_image(f"{server.url}/a.png")
    monkeypatch.setattr(fetch, "DEADLINE_S", 0.6)
    server.serve = DRIPS["body"]
    with pytest.raises(ImageError):
        load_image(server.url)
    open_ones = [str(w.message) for w in recwarn if issubclass(w.category, ResourceWarning)]
    assert not [message for message in open_ones if str(server.port) in message]  # others may be of earlier tests


def test_data_urls_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="larger than the limit"):
        load_image("data:image/png;base64," + base64.b64encode(PNG).decode())
