"""The application: its requests, their limits, and its answers."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

import anyio
import numpy as np
import pyarrow as pa
from annotated_types import Ge
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt
from pydantic_core import PydanticCustomError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

import htd_jax
from htd_jax.errors import UserError
from htd_jax.serve import Model, Recommendations
from htd_jax.service.current import Current
from htd_jax.service.metrics import Counting, Metrics

# Lists that are made at once, between two other requests; more are made in a thread, so that no request waits for them.
FEW = 4

# The errors of one request that are named.
NAMED = 3


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest requests that are answered."""

    max_k: Annotated[int, Ge(1)] = 1000
    """Longest list that a request may ask for."""
    max_lists: Annotated[int, Ge(1)] = 1000
    """Most users, visitors or items that one request may ask lists for."""
    max_ids: Annotated[int, Ge(1)] = 10_000
    """Most items of one visitor, and most ids to allow or deny."""
    max_body: Annotated[int, Ge(1)] = 1_000_000
    """Bytes of the largest request."""


def _id(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("id", "an id is a text or a whole number")
    return value


Id = Annotated[int | str, BeforeValidator(_id)]
Lists = Annotated[list[Id], Field(min_length=1)]


class Asked(BaseModel):
    """What all requests for lists may hold."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[StrictInt, Field(ge=1, description="Length of a list.")] = 20
    allow: Annotated[Lists | None, Field(description="Ids of the only items to list.")] = None
    deny: Annotated[list[Id] | None, Field(description="Ids of items not to list.")] = None
    skip_unknown: Annotated[
        StrictBool, Field(description="Whether to leave unknown ids out, and name them, in place of an error.")
    ] = False


class ForUsers(Asked):
    users: Annotated[Lists, Field(description="Ids of users.", examples=[["u1842", "u77"]])]
    keep_seen: Annotated[StrictBool, Field(description="Whether to list items that the user has seen.")] = False


class ForVisitors(Asked):
    visitors: Annotated[
        list[Lists],
        Field(min_length=1, description="For each visitor, the ids of items seen.", examples=[[["harbour-lights"]]]),
    ]
    keep_seen: Annotated[StrictBool, Field(description="Whether to list items that the visitor has seen.")] = False


class ForItems(Asked):
    items: Annotated[Lists, Field(description="Ids of items.", examples=[["harbour-lights"]])]


class OneList(BaseModel):
    """A list, the best first."""

    id: Annotated[Id, Field(description="The user's or item's id; the visitor's number, from 0.")]
    items: Annotated[list[Id], Field(description="Ids of items.")]
    scores: Annotated[list[float], Field(description="Their scores.")]


class Unknown(BaseModel):
    """Unknown ids."""

    users: list[Id] = []
    items: list[Id] = []


class Answer(BaseModel):
    """Lists, in the order of the request."""

    lists: list[OneList]
    unknown: Annotated[Unknown, Field(description="Ids that were left out: `skip_unknown`.")]
    version: Annotated[str | None, Field(description="Version of the export that answers.")]


class Health(BaseModel):
    """What answers."""

    status: str = "ok"
    version: Annotated[str | None, Field(description="Version of the export.")]
    opened: Annotated[str, Field(description="When it was opened.")]
    precision: str
    users: int
    items: int
    refused: Annotated[str | None, Field(description="Why the last reload kept the earlier export.")]


class Error(BaseModel):
    """What is wrong with a request."""

    detail: Annotated[str, Field(description="One line: what is wrong, and what to do.")]
    unknown: Unknown | None = None


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "A request that cannot be answered, or exceeds a limit"},
    404: {"model": Error, "description": "An unknown id"},
    413: {"model": Error, "description": "Too large a body"},
    422: {"model": Error, "description": "No JSON, a wrong type, or an unknown field"},
}


class Announced:
    """Middleware that refuses a body by its announced size, in JSON; one of no announced size is counted as it comes,
    by Starlette."""

    def __init__(self, app: ASGIApp, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if size.isdecimal() and int(size) > self._limit:
            line = f"a body of {int(size):,} bytes: this service takes {self._limit:,}; send several requests"
            return await JSONResponse({"detail": line}, 413)(scope, receive, send)
        return await self._app(scope, receive, send)


class UnknownIds(UserError):
    """Raised for ids that the model does not know."""

    def __init__(self, line: str, unknown: Unknown):
        super().__init__(line)
        self.unknown = unknown


def create(current: Current, limits: Limits | None = None, *, watch: float = 0, reload: bool = False) -> FastAPI:
    """Returns the application.

    Args:
      current: the model that answers.
      limits: the largest requests that are answered.
      watch: seconds between two looks at the model's folders, which are read again when they have changed; 0 for none.
      reload: whether `POST /reload` reads them, for anyone who can reach the service.
    """
    limits, metrics = limits or Limits(), Metrics(current)
    threads = anyio.CapacityLimiter(os.cpu_count() or 1)  # more would only hold more memory at once

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        end = current.watch(watch)
        yield
        end()

    app = FastAPI(
        title="htd_jax",
        version=htd_jax.__version__,
        description="Recommendations and similar items from an export.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=limits.max_body)
    app.add_middleware(Announced, limit=limits.max_body)
    app.add_middleware(Counting, metrics=metrics)
    app.add_exception_handler(UserError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_form)
    app.add_exception_handler(HTTPException, _refuse_http)

    async def answer(asked: Asked, lists: int, make: Make) -> JSONResponse:
        _check(asked, lists, limits)
        run = functools.partial(_answer, current.loaded.model, asked, make)
        return run() if lists <= FEW else await anyio.to_thread.run_sync(run, limiter=threads)

    @app.post("/recommend", response_model=Answer, responses=ERRORS, summary="The best items of users")
    async def recommend(asked: ForUsers) -> Any:
        def make(model: Model, known: _Known) -> Recommendations | None:
            users, filters = known.ids("user", asked.users), known.filters()
            return model.recommend(users, asked.k, seen=asked.keep_seen, **filters) if users else None

        return await answer(asked, len(asked.users), make)

    @app.post("/visitors", response_model=Answer, responses=ERRORS, summary="The best items of visitors without an id")
    async def visitors(asked: ForVisitors) -> Any:
        def make(model: Model, known: _Known) -> Recommendations | None:
            lists, filters = known.lists(asked.visitors), known.filters()
            if not lists:
                return None
            seen = [*lists.values()]
            rows, hidden = model.fold_in(seen), None if asked.keep_seen else seen
            found = model.recommend_vectors(rows, asked.k, seen=hidden, **filters)
            return dataclasses.replace(found, queries=pa.array([*lists]))

        longest = max(map(len, asked.visitors))
        if longest > limits.max_ids:
            raise UserError(f"`visitors`: {longest:,} items of one; this service takes {limits.max_ids:,}")
        return await answer(asked, len(asked.visitors), make)

    @app.post("/similar", response_model=Answer, responses=ERRORS, summary="The nearest items by cosine")
    async def similar(asked: ForItems) -> Any:
        def make(model: Model, known: _Known) -> Recommendations | None:
            items, filters = known.ids("item", asked.items), known.filters()
            return model.similar(items, asked.k, **filters) if items else None

        return await answer(asked, len(asked.items), make)

    @app.get("/health", response_model=Health, summary="Whether it answers, and with which export")
    async def health() -> Health:
        return _health(current)

    @app.get("/metrics", response_class=PlainTextResponse, summary="Metrics for Prometheus")
    async def told() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    if reload:
        kept: dict[int | str, dict[str, Any]] = {
            409: {"model": Error, "description": "The export on disk is refused; the earlier one stays"}
        }

        @app.post("/reload", response_model=Health, responses=kept, summary="Reads the export again")
        def read_again() -> Health:
            try:
                current.reload()
            except UserError as error:
                raise HTTPException(409, str(error)) from None
            return _health(current)

    return app


class _Known:
    """The ids of a request that a model knows, and those that it does not."""

    def __init__(self, model: Model, asked: Asked, find: bool):
        """
        Args:
          find: whether to look ids up. Otherwise all are taken for known, and the model refuses those that are not.
        """
        self._model, self._asked, self._find = model, asked, find
        self.unknown = Unknown()

    def ids(self, kind: str, given: Sequence[int | str]) -> list[str]:
        """Returns the known ids.

        Raises:
          UnknownIds: if one is unknown, and the request does not skip those.
        """
        texts = [*map(str, given)]  # `"7"` and 7 are one id
        if not self._find:
            return texts
        ids = self._model.user_ids if kind == "user" else self._model.item_ids
        rows = ids.find(texts)
        unknown = [one for one, row in zip(given, rows) if row < 0]
        getattr(self.unknown, f"{kind}s").extend(unknown)
        if unknown and not self._asked.skip_unknown:
            others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            line = f"unknown {kind} {unknown[0]!r}{others}; leave it out, or set `skip_unknown` to true"
            raise UnknownIds(line, self.unknown)
        return [text for text, row in zip(texts, rows) if row >= 0]

    def lists(self, given: Sequence[Sequence[int | str]]) -> dict[int, list[str]]:
        """Returns the known items of each visitor, by its number, without visitors none of whose items is known."""
        known = {number: self.ids("item", items) for number, items in enumerate(given)}
        return {number: items for number, items in known.items() if items}

    def filters(self) -> dict[str, Any]:
        """Returns the items to allow and to deny, as keyword arguments.

        Raises:
          UserError: if no allowed item is known.
        """
        found: dict[str, Any] = {}
        for name in ("allow", "deny"):
            if given := getattr(self._asked, name):
                if ids := self.ids("item", given):
                    found[name] = ids
                elif name == "allow":
                    raise UserError("`allow`: none of these items is known; there is nothing to list")
        return found


# Makes lists by a model of the ids that it knows; None if there are none.
Make = Callable[[Model, _Known], Recommendations | None]


def _answer(model: Model, asked: Asked, make: Make) -> JSONResponse:
    known = _Known(model, asked, find=False)
    try:
        found = make(model, known)
    except UserError:  # an unknown id, or something that is refused again
        known = _Known(model, asked, find=True)
        found = make(model, known)
    lists: list[dict[str, Any]] = []
    if found is not None:
        items = found.ids.take(found.rows).to_pylist()
        scores = np.nan_to_num(found.scores).tolist()  # JSON has no infinity
        width = found.rows.shape[1]
        for row, (one, size) in enumerate(zip(found.queries.to_pylist(), (found.rows >= 0).sum(axis=1).tolist())):
            first = row * width
            lists.append({"id": one, "items": items[first : first + size], "scores": scores[row][:size]})
    return JSONResponse({"lists": lists, "unknown": known.unknown.model_dump(), "version": model.version})


def _check(asked: Asked, lists: int, limits: Limits) -> None:
    """Raises UserError if a request exceeds a limit."""
    if asked.k > limits.max_k:
        raise UserError(f"`k` {asked.k:,}: this service makes lists of up to {limits.max_k:,} items")
    if lists > limits.max_lists:
        raise UserError(f"{lists:,} lists: this service makes {limits.max_lists:,} per request; send several requests")
    for name in ("allow", "deny"):
        if len(given := getattr(asked, name) or []) > limits.max_ids:
            raise UserError(f"`{name}`: {len(given):,} ids; this service takes {limits.max_ids:,}")


def _health(current: Current) -> Health:
    loaded, model = current.loaded, current.loaded.model
    return Health(
        version=model.version,
        opened=loaded.at.isoformat(timespec="seconds"),
        precision=model.precision,
        users=len(model.user_ids),
        items=len(model.item_ids),
        refused=current.refused,
    )


def _refuse(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, UnknownIds):
        return JSONResponse({"detail": str(error), "unknown": error.unknown.model_dump()}, 404)
    return JSONResponse({"detail": str(error)}, 400)


def _refuse_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


def _refuse_form(request: Request, error: Exception) -> JSONResponse:
    """Answers a request that is not JSON, or of other types, by one line."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    parts = [_described(one) for one in errors[:NAMED]]
    if len(errors) > NAMED:
        parts.append(f"and {len(errors) - NAMED} more")
    return JSONResponse({"detail": str(UserError("; ".join(parts)))}, 422)


def _described(error: dict[str, Any]) -> str:
    kind, place = error["type"], ".".join(map(str, error["loc"][1:]))
    if kind == "json_invalid":
        return f"not JSON: {error['ctx']['error']} at character {place}"
    if not place:
        return "send a JSON object, with the header Content-Type: application/json"
    if kind == "extra_forbidden":
        return f"`{place}`: no such field in this request; /docs lists them"
    return f"`{place}`: {error['msg']}"
