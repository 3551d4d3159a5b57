"""Whatever a request has, by the server's own description of it or against that, is never an error of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from starlette.types import Receive, Scope, Send

import vl
from vl.server.app import Server

from .conftest import CONFIG

POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize")
GETS = ("/v1/models", "/v1/models/{name}", "/metrics", "/health")
AS_DESCRIBED, OTHERWISE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def schema(model: vl.MiniMaxVL, until_idle: Callable[..., None]) -> Iterator[Any]:
    server = Server(model, replace(CONFIG, max_new_tokens=3))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """The server, which does not end with each request's client."""
        if scope["type"] == "http":
            await server.app(scope, receive, send)
        for kind in ("startup", "shutdown") if scope["type"] == "lifespan" else ():
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    until_idle(model)


@pytest.mark.parametrize(
    ("path", "mode"),
    [*((path, mode) for path in POSTS for mode in (AS_DESCRIBED, OTHERWISE)), *((path, AS_DESCRIBED) for path in GETS)],
)
def test_no_request_is_an_error_of_the_server(schema: Any, path: str, mode: GenerationMode) -> None:
    operations = {found.ok().path: found.ok() for found in schema.get_all_operations()}
    statuses = set()

    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operations[path].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    check()
    assert statuses <= {200, 400, 404, 405, 413, 415}
