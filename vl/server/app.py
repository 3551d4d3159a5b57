"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import vl
from preprocessing.container import available_cpus
from vl.engine import AsyncEngine, Engine
from vl.errors import ConfigError, Error
from vl.server.answers import Generating
from vl.server.body import parse, read_body, until_gone
from vl.server.chat import ChatAnswer
from vl.server.completions import Completions
from vl.server.config import ServerConfig
from vl.server.errors import ApiError, Json, as_api_error, response
from vl.server.gate import Gate
from vl.server.metrics import Metrics
from vl.server.openai import ChatRequest, CompletionRequest, ModelRequest, TokenizeRequest
from vl.server.origins import allowing
from vl.server.prompts import Prepared, Prompts
from vl.server.sse import EventStream

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

R = TypeVar("R", bound=ModelRequest)
T = TypeVar("T")
_GONE = 499  # nobody reads it


class Server:
    """Answers requests with one model.

    Attributes:
        app: the ASGI application, with its keys and places before it.

    Raises:
        ConfigError: if the model has no engine of this project.
    """

    def __init__(self, model: MiniMaxVL, config: ServerConfig) -> None:
        if not isinstance(model.engine, Engine):
            raise ConfigError("this model's engine is not one of vl.engine: load it with vl.load")
        self._config, self._core, self._prompts = config, model.engine, Prompts(model, config)
        self._engine = AsyncEngine(model.engine)
        self._metrics = Metrics(model.engine)
        self._generating = Generating(self._engine, self._metrics)
        self._threads = ThreadPoolExecutor(available_cpus() + 4, "vl-requests")  # some of which wait for downloads
        self._created = int(time.time())
        gate = Gate(
            self._make_app(),
            keys=config.api_keys,
            places=model.engine.config.max_batch_size + config.max_waiting,
            paths=("/v1/chat/completions", "/v1/completions", "/tokenize"),
            heard=self._heard,
        )
        self.app = allowing(gate, config.origins)

    @property
    def ended(self) -> str | None:
        """Why the model answers no more; None while it does."""
        return self._core.ended

    # Endpoints

    async def chat(self, http: Request) -> Response:
        """Continue a conversation, images included."""
        return await self._answer(http, ChatRequest, self._prompts.chat, ChatAnswer)

    async def complete(self, http: Request) -> Response:
        """Continue texts as they stand."""
        return await self._answer(http, CompletionRequest, self._prompts.completion, Completions)

    async def tokenize(self, http: Request) -> Response:
        """The tokens of a text or a conversation, those of its images too."""
        _, found = await self._read(http, TokenizeRequest, self._prompts.tokenize)
        return Json(found)

    async def models(self) -> Response:
        """What may be asked for."""
        return Json({"object": "list", "data": [self._model(name) for name in self._config.names]})

    async def model(self, name: str) -> Response:
        """One of them."""
        if name not in self._config.names:
            raise ApiError(404, f"there is no model {name!r:.100} here", param="model", code="model_not_found")
        return Json(self._model(name))

    async def health(self) -> Response:
        """Whether the model can answer."""
        if self.ended is not None:
            raise ApiError(503, self.ended, code="model_ended")
        return Json({"status": "ok", "version": vl.__version__})

    async def metrics(self) -> Response:
        """For Prometheus."""
        text = await self._aside(self._metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    # What they share

    async def _answer(
        self, http: Request, kind: type[R], prepare: Callable[[R], Prepared], make: type[ChatAnswer] | type[Completions]
    ) -> Response:
        arrival = time.monotonic()
        request, prepared = await self._read(http, kind, prepare)
        name = self._config.names[0]
        answer = make(self._generating, request, prepared, self._prompts.processor, name, arrival)  # type: ignore[arg-type]
        if request.stream:  # type: ignore[attr-defined]
            return EventStream(answer.chunks())
        return Json(await until_gone(http, answer.whole()))

    async def _read(self, http: Request, kind: type[R], work: Callable[[R], T]) -> tuple[R, T]:
        """The request, and what `work` makes of it in a thread."""
        body = await read_body(http, self._config.max_body)

        def read() -> tuple[R, T]:
            try:
                request = kind.model_validate(parse(body))
                return request, work(request)
            except RecursionError:  # of whatever goes through its objects
                raise ApiError(400, "the request is nested too deeply: flatten its objects and lists") from None

        return await until_gone(http, self._aside(read))

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "minimax-vl",
            "max_model_len": self._config.max_tokens,
        }

    def _heard(self, path: str, status: int) -> None:
        self._metrics.answered(path if path in self._paths else "other", status)

    async def _not_here(self, http: Request, error: Exception) -> Response:
        """What the framework refuses: a path that is not there, or not for this method."""
        assert isinstance(error, HTTPException)
        path, headers = http.url.path, error.headers
        said = str(error.detail)
        if error.status_code == 404:
            said = f"there is no {path:.100} here: ask {', '.join(sorted(self._paths))}"
        elif error.status_code == 405:
            said = f"{path:.100} does not take {http.method:.20}: use {(headers or {}).get('Allow', 'another method')}"
        return response(ApiError(error.status_code, said, headers=headers))

    # The application

    def _make_app(self) -> FastAPI:
        app = FastAPI(
            title="minimax-vl",
            version=vl.__version__,
            docs_url=None,  # it would be fetched from elsewhere
            redoc_url=None,
            redirect_slashes=False,  # to http, behind a proxy that speaks HTTPS: keys would go there in the clear
            lifespan=self._lifespan,
        )
        posts: dict[str, tuple[Callable[..., Any], type[ModelRequest]]] = {
            "/v1/chat/completions": (self.chat, ChatRequest),
            "/v1/completions": (self.complete, CompletionRequest),
            "/tokenize": (self.tokenize, TokenizeRequest),
        }
        gets: dict[str, Callable[..., Any]] = {
            "/v1/models": self.models,
            "/v1/models/{name:path}": self.model,
            "/health": self.health,
            "/metrics": self.metrics,
        }
        for path, (endpoint, kind) in posts.items():
            schema = {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}
            app.add_api_route(path, endpoint, methods=["POST"], openapi_extra={"requestBody": schema})
        for path, get in gets.items():
            app.add_api_route(path, get, methods=["GET"])
            app.add_api_route(path, get, methods=["HEAD"], include_in_schema=False)
        for error in (ApiError, Error, ValidationError, ClientDisconnect, Exception):
            app.add_exception_handler(error, _explain)
        app.add_exception_handler(HTTPException, self._not_here)
        self._paths = frozenset((*posts, *gets, "/openapi.json"))
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self._engine.close()


async def _explain(http: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=_GONE)
    return response(as_api_error(error))
