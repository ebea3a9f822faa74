"""A running server is asked for nonsense, over sockets: it says no in one shape, and goes on."""

import json

import httpx
import pytest
from hostile_bodies import body_cases
from hostile_requests import http_cases
from serve_tester import ask, check_refusal, quiet, read, serving

pytest_plugins = ["serve_fixtures"]

CASES = [*http_cases(), *body_cases()]
LIMITS = {
    "megabytes": 1,
    "pixels": 40_000,
    "characters": 500,
    "rows": 24,
    "connections": 150,
    "header_seconds": 2,
    "body_seconds": 2,
}


@pytest.fixture(scope="module")
def address(predictor):
    """A server with a page, that logs nothing all the while."""
    with serving(predictor, **LIMITS) as address, quiet():
        yield address


def test_there_are_200_kinds():
    assert len({name for name, *_ in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize(("content", "codes"), [pytest.param(*case, id=name) for name, *case in CASES])
def test_hostile(address, content, codes):
    answer = ask(address, content)
    if codes == (200,):
        status, _, body = read(answer)
        assert status == 200
        (row,) = json.loads(body)["predictions"]
        assert row["error"]
        assert row["label"] is None
    else:
        assert check_refusal(answer, content.startswith(b"HEAD")) in codes, answer[:300]
    assert httpx.get(f"{address}/healthz").status_code == 200
