"""`/openapi.json` is valid and true: generated requests get no undocumented answer."""

import re
from types import MethodType
from typing import Any, cast

import pytest
import schemathesis
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Route

from benchmarks.reliability.fuzz import configured, fuzz
from schema import TaskError, schemas
from serve_app.http.description.openapi import openapi
from serve_app.http.routes import ROUTES, asgi_routes
from tests.serve_app.scripted import app_maker, client

MAKE = app_maker()
WITHOUT_DESCRIPTION = {"/docs/static"}


def test_generated_requests() -> None:
    """Bounded; `make fuzz` sends thousands to a running server."""
    described = schemathesis.openapi.from_asgi("/openapi.json", MAKE(), config=configured(2, 7))
    report = fuzz(described)
    assert report.failures == []
    answered = {status for _, status in report.statuses}
    assert {200, 400, 404, 405} <= answered
    assert report.requests > 300


@pytest.mark.parametrize("with_keys", [False, True])
def test_the_document_is_openapi_3_1(with_keys: bool) -> None:
    document = openapi(with_keys)
    schemathesis.openapi.from_dict(document).validate()
    broken = openapi(with_keys)
    broken["paths"]["/health"]["get"]["responses"]["200"].pop("description")
    with pytest.raises(Exception, match="description"):
        schemathesis.openapi.from_dict(broken).validate()


def _below(kind: type[TaskError]) -> set[int]:
    return {kind.http_status}.union(*map(_below, kind.__subclasses__()))


def test_every_error_is_described() -> None:
    for path in ("/v1/tasks", "/v1/chat/completions", "/v1/completions"):
        described = set(map(int, openapi(True)["paths"][path]["post"]["responses"]))
        assert described == _below(TaskError) | {200}


def test_every_route_is_described() -> None:
    app = MAKE()
    assert isinstance(app, Starlette)
    routes = {}
    for route in app.routes:
        path = re.sub(r":\w+}", "}", getattr(route, "path", ""))
        if path not in WITHOUT_DESCRIPTION:
            assert isinstance(route, Route)
            routes[path] = {method.lower() for method in route.methods or ()} - {"head"}
    described = {path: set(item) - {"parameters"} for path, item in openapi(False)["paths"].items()}
    assert described == routes


def test_every_handler_has_a_route() -> None:
    app = MAKE()
    assert isinstance(app, Starlette)
    endpoints = [
        cast(MethodType, route.endpoint) for route in app.routes if isinstance(route, Route)
    ]
    named = {endpoint.__name__ for endpoint in endpoints}
    assert named == {route.handler for route in ROUTES}
    for handlers in {type(endpoint.__self__) for endpoint in endpoints}:
        public = {name for name in vars(handlers) if not name.startswith("_")}
        assert public <= named


def test_a_route_without_a_handler_is_refused() -> None:
    with pytest.raises(LookupError, match="create_task"):
        asgi_routes()


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(_references, value.values()))
    return set().union(*map(_references, value)) if isinstance(value, list) else set()


def test_the_published_schemas_are_the_components() -> None:
    document = openapi(False)
    components = document["components"]["schemas"]
    assert set(schemas()) <= set(components)
    for reference in _references(document):
        *path, name = reference.removeprefix("#/").split("/")
        place: Any = document
        for part in path:
            place = place[part]
        assert name in place
    # They take what the published ones take.
    for name, published in schemas().items():
        moved = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        for example in published["examples"]:
            Draft202012Validator(moved).validate(example)
            assert not Draft202012Validator(moved).is_valid([example])


async def test_the_page_loads_nothing_from_other_hosts() -> None:
    async with client(MAKE()) as http:
        page = await http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        addresses = re.findall(r'(?:src|href|url)["\']?\s*[=:]\s*["\']([^"\']+)["\']', page.text)
        assert "openapi.json" in addresses
        assert len(addresses) == 4
        for address in addresses:
            assert "//" not in address
            assert (await http.get(f"/{address}")).status_code == 200
