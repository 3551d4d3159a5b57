"""What browsers are told of pages of other origins, whatever the answer is."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from .conftest import Serve, ask

CHAT, PAGE, OTHER = "/v1/chat/completions", "https://app.example.com", "http://localhost:3000"
ALLOWED = "access-control-allow-origin"
KEY = {"Authorization": "Bearer one"}
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


def answers(client: TestClient, **headers: str) -> list[Any]:
    """Of every kind."""
    body = ask(max_tokens=2)
    return [
        client.post(CHAT, json=body, headers=headers),
        client.post(CHAT, json=body, headers=KEY | headers),
        client.post(CHAT, json=body | {"stream": True}, headers=KEY | headers),
        client.post(CHAT, json=body | {"n": 0}, headers=KEY | headers),
        client.post(CHAT, json=ask("a" * 4000), headers=KEY | headers),
        client.post(CHAT, content=b"{}", headers=KEY | headers),
        client.get("/nothing", headers=KEY | headers),
        client.get("/health", headers=headers),
    ]


STATUSES = [401, 200, 200, 400, 413, 415, 404, 200]


def test_every_answer_says_that_the_page_may_read_it(serve: Serve) -> None:
    client = serve(api_keys=("one",), origins=(PAGE, OTHER), max_body=2000)
    for page in (PAGE, OTHER):
        asked = client.options(CHAT, headers=PREFLIGHT | {"Origin": page})
        assert (asked.status_code, asked.headers[ALLOWED]) == (200, page)
        assert set(PREFLIGHT["Access-Control-Request-Headers"].split(",")) <= set(
            asked.headers["access-control-allow-headers"].split(",")
        )
        found = answers(client, Origin=page)
        assert [each.status_code for each in found] == STATUSES
        assert {(each.headers[ALLOWED], each.headers["vary"]) for each in found} == {(page, "Origin")}
        assert all("access-control-allow-credentials" not in each.headers for each in [asked, *found])


@pytest.mark.parametrize(("origins", "page"), [((PAGE,), "https://evil.example.com"), ((PAGE,), "null"), ((), PAGE)])
def test_other_pages_hear_nothing(serve: Serve, origins: tuple[str, ...], page: str) -> None:
    client = serve(api_keys=("one",), origins=origins, max_body=2000)
    asked = client.options(CHAT, headers=PREFLIGHT | {"Origin": page})
    assert asked.status_code >= 400
    found = answers(client, Origin=page)
    assert [each.status_code for each in found] == STATUSES
    assert not any(name.startswith("access-control-allow-origin") for each in [asked, *found] for name in each.headers)


def test_a_full_server_says_when_to_any_page(serve: Serve) -> None:
    client = serve(origins=("*",), max_waiting=-4)  # no place at all
    found = client.post(CHAT, json=ask(), headers={"Origin": PAGE})
    assert (found.status_code, found.headers[ALLOWED]) == (429, "*")
    assert found.headers["access-control-expose-headers"] == "Retry-After"
