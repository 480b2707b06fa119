"""From the engine's thread to a coroutine: no output is lost, and the end is never delayed."""

import asyncio
import math
import threading
import time

from engine.requests.output_collector import RequestOutputCollector
from engine.requests.outputs import ChoiceDelta, RequestOutput

LONG = 60.0


def output(text: str, *, done: bool = False) -> RequestOutput:
    return RequestOutput((ChoiceDelta(0, text, "stop" if done else None),), len(text), done)


def text_of(progress: RequestOutput) -> str:
    return "".join(delta.text for delta in progress.deltas)


async def test_the_end_is_reported_at_once_with_what_was_held_back() -> None:
    mailbox = RequestOutputCollector()
    mailbox.put(output("a"))
    assert text_of(await mailbox.get()) == "a"
    mailbox.put(output("b"))  # wakes the consumer before it asks to hold outputs back
    held = asyncio.create_task(mailbox.get(None, LONG))
    await asyncio.sleep(0.01)
    mailbox.put(output("c"))
    await asyncio.sleep(0.01)
    assert not held.done()
    mailbox.put(output("d", done=True))
    async with asyncio.timeout(LONG / 2):
        last = await held
    assert (text_of(last), last.done) == ("bcd", True)


async def test_an_end_that_is_there_is_not_held_back() -> None:
    mailbox = RequestOutputCollector()
    mailbox.put(output("a", done=True))
    async with asyncio.timeout(LONG / 2):
        assert (await mailbox.get(LONG, LONG)).done


async def test_without_output_the_wait_ends() -> None:
    mailbox = RequestOutputCollector()
    for patience_s, hold_s in ((0.01, 0.01), (0.02, 0.01), (0.01, 0.02), (0.01, 0.0)):
        assert await mailbox.get(patience_s, hold_s) == RequestOutput()
    mailbox.put(output("a"))
    assert text_of(await mailbox.get(LONG, 0.01)) == "a"


async def test_whatever_a_thread_puts_arrives_once_and_in_order() -> None:
    mailbox = RequestOutputCollector()
    pieces = [f"{number} " for number in range(2000)]

    def put() -> None:
        for number, piece in enumerate(pieces):
            mailbox.put(output(piece, done=number == len(pieces) - 1))
            if number % 50 == 0:
                time.sleep(0.001)

    thread = threading.Thread(target=put)
    thread.start()
    received: list[RequestOutput] = []
    while not received or not received[-1].done:
        received.append(await mailbox.get(0.001, 0.002 * (len(received) % 3)))
    thread.join()
    assert "".join(map(text_of, received)) == "".join(pieces)


async def test_until_the_end_there_are_only_heartbeats() -> None:
    outputs = RequestOutputCollector()
    for text in ("a", "b"):
        outputs.put(output(text))
        assert await outputs.get(0.01, math.inf) == RequestOutput()
    last = asyncio.create_task(outputs.get(LONG, math.inf))
    await asyncio.sleep(0.01)
    outputs.put(output("c"))
    await asyncio.sleep(0.01)
    assert not last.done()
    outputs.put(output("d", done=True))
    async with asyncio.timeout(LONG / 2):
        assert (text_of(await last), (await last).done) == ("abcd", True)


async def test_a_thread_that_puts_while_only_the_end_is_wanted_loses_nothing() -> None:
    outputs = RequestOutputCollector()
    pieces = [f"{number} " for number in range(2000)]

    def put() -> None:
        for number, piece in enumerate(pieces):
            outputs.put(output(piece, done=number == len(pieces) - 1))
            if number % 50 == 0:
                time.sleep(0.001)

    thread = threading.Thread(target=put)
    thread.start()
    received: list[RequestOutput] = []
    while not received or not received[-1].done:
        received.append(await outputs.get(0.001, math.inf))
    thread.join()
    assert text_of(received[-1]) == "".join(pieces)
    assert not any(map(text_of, received[:-1]))
