"""Bodies as they come: at what pace they must, whose time counts, and how much of them is held."""

import asyncio

import pytest
from serve_tester import spoken

from mope.serve.limits import BODIES, CALLER, BodyLimit
from mope.serve.settings import ServeSettings

TOKENS = {f"caller{number}": f"token-of-caller-{number}" for number in range(4)}


def part(size: int, more: bool = True) -> dict:
    return {"type": "http.request", "body": b" " * size, "more_body": more}


async def ask(limit: BodyLimit, receive, caller: str | None = None) -> tuple[int, str]:
    """Status and body of what is answered to a request."""
    sent: list = []

    async def send(message):
        sent.append(message)

    state = {} if caller is None else {CALLER: caller}
    await limit({"type": "http", "headers": [], "state": state}, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


def whole(then=None):
    """An app that reads a body to its end, and says so; it begins with something else, if there is any."""

    async def app(scope, receive, send):
        if then is not None:
            then()
        while (await receive())["more_body"]:
            pass
        await spoken(send)

    return app


def parts(*messages: dict, end: asyncio.Event | None = None):
    """Messages one after another, each a step of the loop after it was asked for; then nothing, or at an
    event the last one."""
    left = list(messages)

    async def receive():
        await asyncio.sleep(0)
        if not left:
            await (end or asyncio.Event()).wait()
            return part(1, more=False)
        return left.pop(0)

    return receive


def test_a_large_body_can_t_stop_for_long():
    """What it brought gives no more than the seconds that every body has."""
    limit = BodyLimit(whole(), ServeSettings(body_seconds=0.05), lambda refusal: None)

    async def run():
        return await asyncio.wait_for(ask(limit, parts(*[part(2**20)] * 31)), 30)

    status, text = asyncio.run(run())
    assert status == 408
    assert "each 4,096 bytes give one back" in text
    assert not limit.held


def test_time_in_which_nobody_asks_for_a_body_is_not_the_caller_s():
    """A run that is loaded meanwhile takes a minute; the body comes at once when it is wanted."""
    loading = 0.0

    async def run():
        loop = asyncio.get_running_loop()
        clock = loop.time
        loop.time = lambda: clock() + loading

        def load():
            nonlocal loading
            loading += 60

        limit = BodyLimit(whole(load), ServeSettings(body_seconds=5), lambda refusal: None)
        return await ask(limit, parts(part(10), part(10), part(10, more=False)))

    assert asyncio.run(run())[0] == 200


@pytest.mark.parametrize("tokens", [{}, TOKENS])
def test_a_caller_s_bodies_leave_room_for_others(tokens):
    """Of four callers each may hold a quarter; without tokens all have one limit."""
    limit = BodyLimit(whole(), ServeSettings(megabytes=1, tokens=tokens), lambda refusal: None)
    names = list(tokens) or [None] * 4
    share = limit.settings.bytes

    async def run():
        end = asyncio.Event()
        held = [
            asyncio.create_task(ask(limit, parts(part(share - 1), end=end), names[0]))
            for _ in range(BODIES // 4)
        ]
        while limit.held.total() < len(held) * (share - 1):
            await asyncio.sleep(0)
        found = [await ask(limit, parts(part(share - 1), part(1, more=False)), name) for name in names[:2]]
        end.set()
        return found, await asyncio.gather(*held)

    (own, other), held = asyncio.run(run())
    assert [status for status, _ in held] == [200] * 4
    assert other[0] == 200
    assert own[0] == (503 if tokens else 200)
    assert ("Your token's requests hold 4 MB at most" in own[1]) == bool(tokens)
    assert not limit.held
