"""A stream whose replica is lost continues, and no character is lost, doubled or changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp

from schema import EngineStopped, Overloaded, ReplayDiffers, StreamChunk, Task
from schema.answers.response import collect
from serve_app.graph.replay import Delivered, KnownTokens
from tests.serve_app.scripted import StandIn, app_maker, chunk, client, events_of, task

# --- Chunks, without a graph ---------------------------------------------------------------------

Texts = list[str]


def cut(text: str, places: list[int]) -> Texts:
    """A text in pieces."""
    stops = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def run_of(texts: Texts, places: list[int], reason: str = "stop") -> list[StreamChunk]:
    """Chunks of a run with these texts, one for each choice, cut at these places."""
    chunks: list[Any] = []
    for index, text in enumerate(texts):
        pieces = [piece for piece in cut(text, places) if piece]
        for number, piece in enumerate(pieces or [""]):
            made: Any = chunk(piece, reason if number >= len(pieces) - 1 else None)
            made["choices"][0]["index"] = index
            chunks.append(made)
    return chunks


answers = st.lists(st.text("abé\n🙂", max_size=12), min_size=1, max_size=3)
places = st.lists(st.integers(0, 12), max_size=6)


@given(answers, st.lists(st.tuples(places, st.integers(0, 30)), max_size=3), places)
def test_the_client_gets_the_answer_after_any_loss(
    texts: Texts, lost: list[tuple[list[int], int]], last: list[int]
) -> None:
    delivered, told = Delivered(), list[StreamChunk]()
    for cuts, count in lost:
        told += [new for c in run_of(texts, cuts)[:count] if (new := delivered.take(c))]
        delivered.again()
    told += [new for c in run_of(texts, last) if (new := delivered.take(c))]
    response = collect(told)
    assert [c["message"]["content"] for c in response["choices"]] == texts
    ends = [c["index"] for made in told for c in made["choices"] if c["finish_reason"]]
    assert sorted(ends) == list(range(len(texts)))  # each is sent once


@given(answers, places, st.integers(1, 30), answers, places)
def test_a_run_that_differs_is_never_spliced(
    texts: Texts, cuts: list[int], count: int, others: Texts, other_cuts: list[int]
) -> None:
    others = (others + texts)[: len(texts)]
    delivered = Delivered()
    before = [new for c in run_of(texts, cuts)[:count] if (new := delivered.take(c))]
    delivered.again()
    after = list[StreamChunk]()
    try:
        after += [new for c in run_of(others, other_cuts) if (new := delivered.take(c))]
    except ReplayDiffers:
        assert texts != others
        return
    joined = collect([*before, *after])
    assert [c["message"]["content"] for c in joined["choices"]] == others


def test_every_part_of_a_delta_is_continued() -> None:
    """Tool calls and log-probabilities add up as texts do."""

    def delta(arguments: str, logprobs: list[float]) -> StreamChunk:
        made: Any = chunk("")
        call = {"index": 1, "function": {"arguments": arguments}}
        made["choices"][0]["delta"]["tool_calls"] = [call]
        made["choices"][0]["logprobs"] = {"content": [{"logprob": value} for value in logprobs]}
        return cast(StreamChunk, made)

    delivered = Delivered()
    delivered.take(delta('{"city": "Li', [-1.0, -2.0]))
    delivered.again()
    assert delivered.take(delta('{"ci', [-1.0])) is None
    news = delivered.take(delta('ty": "Lima"}', [-2.0, -3.0]))
    assert news is not None
    (choice,) = json.loads(json.dumps(news))["choices"]
    assert choice["delta"]["tool_calls"] == [{"index": 1, "function": {"arguments": 'ma"}'}}]
    assert choice["logprobs"] == {"content": [{"logprob": -3.0}]}
    delivered.again()
    with pytest.raises(ReplayDiffers):
        delivered.take(delta("{", [-1.5]))


@given(answers, places, places, st.integers(0, 3))
def test_what_is_said_of_the_prompt_is_sent_once(
    texts: Texts, cuts: list[int], last: list[int], count: int
) -> None:
    """With the first chunk that is sent, even if that one of the second run has nothing new."""

    def run(cuts: list[int], text: str = "Say") -> list[StreamChunk]:
        silent: Any = chunk("")
        first, *rest = [silent, *run_of(texts, cuts)]
        token: Any = {"token": "Say", "token_id": 4, "bytes": [83, 97, 121], "text_offset": 0}
        listed = [{**token, "logprob": None, "top_logprobs": []}]
        of_prompt = {"prompt_text": text, "prompt_logprobs": listed, "prompt_token_ids": [4]}
        return [cast(StreamChunk, {**first, **of_prompt}), *rest]

    delivered, told = Delivered(), list[StreamChunk]()
    told += [new for c in run(cuts)[:count] if (new := delivered.take(c))]
    delivered.again()
    told += [new for c in run(last) if (new := delivered.take(c))]
    for name in ("prompt_text", "prompt_logprobs", "prompt_token_ids"):
        assert [name in new for new in told] == [i == 0 for i in range(len(told))]
    assert collect(told)["prompt_text"] == "Say"
    assert collect(told)["prompt_token_ids"] == [4]
    if count:
        delivered.again()
        with pytest.raises(ReplayDiffers):
            delivered.take(run(last, "Sag")[0])


@given(answers, st.lists(st.tuples(places, st.integers(0, 30)), max_size=3), places)
def test_token_ids_of_a_task_that_asks_for_them_are_sent_once(
    texts: Texts, lost: list[tuple[list[int], int]], last: list[int]
) -> None:
    """Here a character is a token. An answer that has none says so."""

    def run(cuts: list[int]) -> list[StreamChunk]:
        chunks: list[Any] = run_of(texts, cuts)
        for made in chunks:
            (choice,) = made["choices"]
            choice["token_ids"] = [ord(character) for character in choice["delta"]["content"]]
        return chunks

    delivered, told = Delivered(), list[StreamChunk]()
    for cuts, count in lost:
        told += [new for c in run(cuts)[:count] if (new := delivered.take(c))]
        delivered.again()
    told += [new for c in run(last) if (new := delivered.take(c))]
    got = [choice["token_ids"] for choice in collect(told)["choices"]]
    assert got == [[ord(character) for character in text] for text in texts]
    if any(texts):
        delivered.again()
        other: Any = run_of(texts, [])[0]
        other["choices"][0]["token_ids"] = [0]
        with pytest.raises(ReplayDiffers):
            delivered.take(other)


def test_other_token_ids_of_the_prompt_are_another_run() -> None:
    first = chunk("a")
    first["prompt_token_ids"] = [4, 5]
    delivered = Delivered()
    delivered.take(first)
    delivered.again()
    with pytest.raises(ReplayDiffers):
        delivered.take({**first, "prompt_token_ids": [4, 6]})


def test_a_chunk_without_new_tokens_says_so() -> None:
    """Text may come after its token: the ids were sent before. So may an end without either."""

    def part(text: str, token_ids: list[int], reason: Any = None) -> StreamChunk:
        made: Any = chunk(text, reason)
        made["choices"][0]["token_ids"] = token_ids
        return cast(StreamChunk, made)

    delivered = Delivered()
    told = [delivered.take(part("a", [1, 2]))]  # the text of 2 is held back
    delivered.again()
    told += [delivered.take(c) for c in (part("a", [1]), part("b", [2]), part("", [], "stop"))]
    news = [new for new in told if new is not None]
    assert [new["choices"][0]["token_ids"] for new in news] == [[1, 2], [], []]
    (choice,) = collect(news)["choices"]
    assert (choice["message"]["content"], choice["token_ids"]) == ("ab", [1, 2])


tokens = st.lists(st.integers(0, 2**32 - 1), max_size=8)


@given(st.lists(tokens, min_size=1, max_size=3), st.lists(st.lists(st.integers(1, 8)), max_size=4))
def test_known_tokens_are_the_most_that_any_run_has_said(
    answers: list[list[int]], runs: list[list[int]]
) -> None:
    """Of runs that agree, as those of one task do; each says so many tokens in each message."""
    known, longest = KnownTokens(), 0
    for run in runs:
        known.again()
        start = 0
        for size in run:
            known.take(tuple(tuple(answer[start : start + size]) for answer in answers))
            start += size
        longest = max(longest, start)
        told = [list(answer) for answer in known.token_ids()]
        assert told == [answer[:longest] for answer in answers][: len(told)]
        assert len(known) == sum(map(len, told))


def test_a_run_that_differs_replaces_what_was_known_from_there_on() -> None:
    known = KnownTokens()
    known.take(((1, 2, 3, 4), (7,)))
    known.again()
    known.take(((1,), ()))
    assert known.token_ids() == ((1, 2, 3, 4), (7,))
    known.take(((9,), (7, 8)))
    assert known.token_ids() == ((1, 9), (7, 8))


def test_a_replica_of_another_kind_does_not_continue() -> None:
    delivered = Delivered()
    delivered.take(chunk("a"))
    delivered.again()
    with pytest.raises(ReplayDiffers, match="two instead of one"):
        delivered.take({**chunk("a"), "system_fingerprint": "two"})


# --- Through the dispatcher ----------------------------------------------------------------------

LOST, STALLED, FULL, STOPPED = "<lost>", "<stalled>", "<full>", "<stopped>"
_runs: dict[str, int] = {}


class LosingReplica(StandIn):
    """Answers with the task's script for this run: a list of texts for every run."""

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        script = str(task.messages[0].content)
        run = _runs[script] = _runs.get(script, -1) + 1
        runs: list[Texts] = json.loads(script)
        *texts, last = runs[min(run, len(runs) - 1)]
        for text in texts:
            yield chunk(text)
        if last == LOST:
            raise EngineStopped("gone", retry_after_s=1)
        if last == STOPPED:  # by Ray; the client did not ask for it
            raise asyncio.CancelledError
        if last == FULL:
            raise Overloaded("full", retry_after_s=1)
        if last == STALLED:
            await asyncio.Event().wait()
        yield chunk(last, "stop")


@pytest.fixture(scope="module")
def app() -> Callable[..., ASGIApp]:
    return app_maker(LosingReplica)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("runs", "text", "code"),
    [
        ([["a", "b", LOST], ["ab", "c"]], "abc", None),
        ([[LOST], ["abc"]], "abc", None),
        ([["a", LOST], ["ab", LOST], ["", "abc"]], "abc", None),
        ([["a", STALLED], ["abc"]], "abc", None),
        ([["a", STOPPED], ["abc"]], "abc", None),
        ([["a", LOST], [FULL], ["abc"]], "abc", None),  # it had a place, and gets another
        ([["a", LOST]], "a", "engine_stopped"),
        ([["ab", LOST], ["ac"]], "ab", "replay_differs"),
        ([["ab", LOST], ["a"]], "ab", "replay_differs"),
    ],
)
async def test_losses(
    app: Callable[..., ASGIApp], runs: list[Texts], text: str, code: str | None, streamed: bool
) -> None:
    script = task(json.dumps(runs))
    _runs.clear()
    async with client(app(stall_timeout_s=0.2, max_replays=2)) as http:
        response = await http.post("/v1/tasks" + ("?stream=true" if streamed else ""), json=script)
        counted = (await http.get("/v1/models")).json()["ingress"]["replays"]
    # A task that was refused because there was no room was not lost.
    again = _runs[str(script["messages"][0]["content"])]
    assert counted == {"Model:demo": again - ([FULL] in runs)}
    if not streamed and code == "replay_differs":  # nothing of the first run was sent
        assert response.json()["choices"][0]["message"]["content"] == runs[1][0]
        return
    if not streamed:
        body = response.json()
        assert (response.status_code, body.get("error", {}).get("code")) == (
            (200, None) if code is None else (503, code)
        )
        assert code or body["choices"][0]["message"]["content"] == text
        return
    *events, last = events_of(response.text)
    assert last.get("error", {}).get("code") == code
    events += [] if code else [last]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == text
