"""The middleware for admission: keys, limits of keys, places, and the time for the body."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schema.errors import (
    BodyTimeout,
    InvalidApiKey,
    Overloaded,
    RateLimited,
    TaskArgsInvalid,
    TaskError,
)
from serve_app.config.app_args import AppArgs
from serve_app.config.limit_args import LimitArgs
from serve_app.http.bodies import error_response
from serve_app.http.middleware.api_keys import Keys
from serve_app.http.middleware.rate_limits import KeyLimits
from serve_app.http.places import give_places
from serve_app.http.routes import Access, path_of, paths_with
from serve_app.http.shutdown import SCOPE_KEY, Shutdown
from serve_app.observability.request_record import entry
from serve_app.protocol.failures import RETRY_AFTER_S, Stopping

logger = logging.getLogger("ray.serve")

OPEN_PATHS = paths_with(Access.OPEN)
"""Paths that need no key and no place."""
DOCS_PATHS = paths_with(Access.DOCS)
"""Paths that need none with ``auth.public_docs``: their answer is the same on every server."""
MAX_QUERY = 4096
SENDING_S = 60.0
"""Time for a client to read the end of an answer that was complete just before its deadline."""

# Names of query parameters that hold a key in other APIs, without separators.
_KEY_NAMES = {
    *("key", "apikey", "xapikey", "openaiapikey", "token", "accesstoken", "authtoken"),
    *("auth", "authorization", "bearer", "secret", "password"),
}
_PLAIN_KEY = b"x-api-key"
_BEARER = re.compile(r"bearer +([^ ]+) *", re.IGNORECASE)


class Gate:
    """ASGI middleware. Every request has a place here until its answer has been sent.

    ``keys`` are those of ``args.auth``; they are read before the first request comes.
    """

    def __init__(self, app: ASGIApp, args: AppArgs, keys: Keys | None, shutdown: Shutdown) -> None:
        self._app = app
        self._shutdown = shutdown
        self._request_limits = args.limits
        self._in_flight = 0
        self._open: tuple[str, ...] = OPEN_PATHS
        self._keys = keys
        self._key_limits: dict[str, KeyLimits] = {}
        if args.auth is not None and keys is not None:
            self._key_limits = {
                name: KeyLimits(name, args.auth.limits_of(name)) for name in keys.names
            }
            if args.auth.public_docs:
                self._open += DOCS_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it at once."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._refuse_keys_in_query(scope["query_string"].decode("latin-1"))
            place = ExitStack() if self._is_open(scope) else self._admit(scope)
        except TaskError as error:
            await error_response(error)(scope, receive, send)
            return
        limits = self._request_limits
        timeout = asyncio.timeout(limits.body_timeout_s + limits.request_timeout_s + SENDING_S)
        with place:
            try:
                # The dispatcher bounds the task; this bounds a client that does not read.
                async with timeout:
                    await self._answer(scope, _timed(receive, limits), send)
            except TimeoutError:
                if not timeout.expired():
                    raise
                # The server closes the connection of an answer that is not complete on return.
                logger.warning("a client did not read its answer in time")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; with an error if the server is stopped and the answer has not begun in time.

        The stream of an answer that has begun ends itself.
        """
        begun = False
        scope[SCOPE_KEY] = self._shutdown
        try:
            async with self._shutdown.limit() as limit:

                async def beginning(message: Message) -> None:
                    nonlocal begun
                    if message["type"] == "http.response.start":
                        if limit.expired():  # what somebody has made of the cancellation
                            raise self._shutdown.cut_off()
                        begun = True
                        limit.lift()
                    await send(message)

                await self._app(scope, receive, beginning)
        except Stopping as error:
            if begun:
                raise
            await error_response(error)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = path_of(scope)
        below = tuple(f"{public}/" for public in self._open if public != "/")
        return path in self._open or path.startswith(below)

    def _admit(self, scope: Scope) -> ExitStack:
        """A place; closing the stack frees it. Raises `TaskError`."""
        self._shutdown.refuse_if_stopping()
        with ExitStack() as stack:
            stack.enter_context(self._shutdown.request())
            of_key: KeyLimits | None = None
            if self._keys is not None:
                name = _authenticated(scope, self._keys)
                entry().key = name
                of_key = self._key_limits[name]
                stack.enter_context(of_key.place())
            stack.enter_context(self._place())
            give_places(scope, _FurtherPlaces(self._place, of_key))
            return stack.pop_all()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._in_flight >= self._request_limits.max_in_flight:
            raise Overloaded("the server has as many requests as it may", None, RETRY_AFTER_S)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _refuse_keys_in_query(self, query: str) -> None:
        if not query:
            return
        if len(query) > MAX_QUERY:
            raise TaskArgsInvalid(f"the query is longer than {MAX_QUERY} characters")
        for name, value in parse_qsl(query, keep_blank_values=True):
            plain = re.sub(r"[^a-z]", "", name.lower())
            known = self._keys and (self._keys.name_of(name) or self._keys.name_of(value))
            if plain in _KEY_NAMES or known:
                raise TaskArgsInvalid(
                    "a key must not stand in the address, which logs and histories keep: send it "
                    "in the header Authorization: Bearer KEY, and replace this key"
                )


class _FurtherPlaces:
    """Places beside a request's own one: see `serve_app.http.places`."""

    def __init__(
        self, place: Callable[[], AbstractContextManager[None]], of_key: KeyLimits | None
    ) -> None:
        self._place = place
        self._of_key = of_key

    def count(self, num_tasks: int) -> None:
        if self._of_key is not None:
            self._of_key.count(num_tasks)

    def take(self) -> AbstractContextManager[None] | None:
        try:
            with ExitStack() as stack:
                if self._of_key is not None:
                    stack.enter_context(self._of_key.further_place())
                stack.enter_context(self._place())
                return _closing(stack.pop_all())
        except (Overloaded, RateLimited):
            return None


@contextmanager
def _closing(stack: ExitStack) -> Iterator[None]:
    with stack:
        yield


def _authenticated(scope: Scope, keys: Keys) -> str:
    """The name of the key that the request carries.

    It is in ``Authorization``, or in ``x-api-key``, where Anthropic's clients put it. Where both
    are sent, ``Authorization`` counts.

    Raises:
        InvalidApiKey: there is no key, or it is not one of ours.
    """
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    plain = [value for name, value in scope["headers"] if name == _PLAIN_KEY]
    if given:
        bearer = _BEARER.fullmatch(given[0].decode("latin-1"))
        if len(given) > 1 or bearer is None:
            raise InvalidApiKey("there must be one header Authorization, of the form Bearer KEY")
        key = bearer[1]
    elif plain:
        if len(plain) > 1:
            raise InvalidApiKey("there must be one header x-api-key")
        key = plain[0].decode("latin-1")
    else:
        raise InvalidApiKey("a key is needed: send the header Authorization: Bearer KEY")
    name = keys.name_of(key)
    if name is None:
        raise InvalidApiKey("the key is not one of this server's keys")
    return name


def _timed(receive: Receive, limits: LimitArgs) -> Receive:
    """``receive``, which raises `BodyTimeout` if the body is not there in time."""
    deadline = asyncio.get_running_loop().time() + limits.body_timeout_s
    complete = False

    async def timed() -> Message:
        nonlocal complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise BodyTimeout(
                f"the body did not arrive within {limits.body_timeout_s:g} seconds"
            ) from None
        complete = not message.get("more_body", False)
        return message

    return timed
