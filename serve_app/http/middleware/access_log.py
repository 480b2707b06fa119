"""The outermost middleware: gives a request its id, and logs and counts the request."""

from __future__ import annotations

import json
import logging
import re
import uuid

from ray.exceptions import TaskCancelledError
from ray.serve.exceptions import RequestCancelledError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schema.errors import Cancelled, Overloaded, TaskArgsInvalid, TaskExecutionError
from serve_app.http.bodies import error_response
from serve_app.http.errors import ErrorForm
from serve_app.http.middleware.admission import OPEN_PATHS
from serve_app.http.middleware.refusal_log import RefusalLog
from serve_app.http.routes import error_form, path_of
from serve_app.observability.request_metrics import RequestMetrics
from serve_app.observability.request_record import Entry, current
from serve_app.protocol.failures import LOST, NotReady, Stopping

logger = logging.getLogger("ray.serve")

REQUEST_ID_HEADER = "x-request-id"
ANTHROPIC_ID_HEADER = "request-id"
"""Where Anthropic's clients look for the same, above all in an error."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@+/=~-]{1,128}")
_REFUSED = (Overloaded.code, NotReady.code, Stopping.code)
MAX_PATH = 200
"""Characters of a path in the log."""

GONE = (TaskCancelledError, RequestCancelledError, *LOST)
"""What Ray's call to its proxy raises when the proxy or the client has disconnected."""


class RequestLog:
    """ASGI middleware.

    Ray's proxy gives an id to a request that has none, writes it into its own log lines and those
    of all deployments, and sends it back. It does the same with any id that a client sends, so ids
    with unusual characters are refused here. Without a proxy the id is made here.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._refusals = RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and log its end in all cases (refusals: `refusal_log`)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == REQUEST_ID_HEADER.encode()]
        request_id = given[0].decode("latin-1") if given else str(uuid.uuid4())
        is_id = len(given) <= 1 and _REQUEST_ID.fullmatch(request_id) is not None
        made = Entry(request_id, error_form=error_form(path_of(scope)).value)

        complete = False

        async def observed(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                made.status = message["status"]
                headers = MutableHeaders(scope=message)
                if not given:
                    headers[REQUEST_ID_HEADER] = request_id
                if made.error_form == ErrorForm.ANTHROPIC.value and is_id:
                    headers[ANTHROPIC_ID_HEADER] = request_id
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        token = current.set(made)
        try:
            if not is_id:
                await error_response(_bad_id())(scope, receive, observed)
            else:
                await self._app(scope, _with_disconnects(receive), observed)
        except Exception:
            made.error = TaskExecutionError.code
            made.status = made.status or TaskExecutionError.http_status
            raise
        finally:
            current.reset(token)
            # No status: nothing was sent, because the client has disconnected.
            made.status = made.status or Cancelled.http_status
            if not complete:  # disconnected during the answer
                made.error = made.error or Cancelled.code
            self._ended(scope, made)

    def _ended(self, scope: Scope, made: Entry) -> None:
        if path_of(scope) in OPEN_PATHS:
            # A health check is not counted; it comes about every second. It is logged if it fails
            # for another reason than a model that is not ready, or a server that stops.
            if made.error not in (None, NotReady.code, Stopping.code):
                _log(scope, made, made.seconds)
            return
        self._metrics.ended(made)
        if made.error not in _REFUSED or not self._refusals.joins(made):
            _log(scope, made, made.seconds)


def _with_disconnects(receive: Receive) -> Receive:
    """``receive``, which reports a disconnect in ASGI's way; behind Ray's proxy it may raise."""

    async def received() -> Message:
        try:
            return await receive()
        except GONE:
            return {"type": "http.disconnect"}

    return received


def _bad_id() -> TaskArgsInvalid:
    return TaskArgsInvalid(
        f"{REQUEST_ID_HEADER} must be one id of 1 to 128 letters, digits and any of ._:@+/=~-; "
        "without it the request gets one",
        param=REQUEST_ID_HEADER,
    )


def _log(scope: Scope, made: Entry, seconds: float) -> None:
    # As JSON a string has no line breaks and control characters, so it cannot forge a log line.
    # Ray's formatter writes the request's id in front.
    usage = made.usage
    tokens = "-" if usage is None else f"{usage['prompt_tokens']}+{usage['completion_tokens']}"
    logger.info(
        "%s %s %s %.1fms key=%s model=%s tokens=%s error=%s%s",
        json.dumps(scope["method"])[1:-1],
        json.dumps(scope["path"][:MAX_PATH]),
        made.status,
        seconds * 1000,
        made.key or "-",
        json.dumps(made.model),
        tokens,
        made.error or "-",
        "" if made.verdict is None else f" verdict={made.verdict}",
    )
