"""Completions of several prompts: each is answered as if it were alone, and all end together."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, ClassVar

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import CompletionChoice
from starlette.types import ASGIApp
from transformers import AutoTokenizer

from schema import Overloaded, StreamChunk, Task, TaskArgsInvalid
from serve_app.config.app_args import REPOSITORY
from tests.serve_app.scripted import StandIn, app_maker, chunk, client, events_of

PROMPTS = [f"Number {number} is" for number in range(40)]
SAMPLED: dict[str, Any] = {"model": "demo", "max_tokens": 6, "n": 2, "seed": 7}

# --- On the server of the committed configuration ------------------------------------------------


@pytest.fixture
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def streamed(api: OpenAI, asked: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """What the chunks of each choice add up to, and the usage."""
    choices: dict[int, dict[str, Any]] = {}
    options: Any = {"include_usage": True}
    *chunks, last = api.completions.create(**asked, stream=True, stream_options=options)
    for each in chunks:
        for choice in each.choices:
            found = choices.setdefault(choice.index, {"index": choice.index, "text": ""})
            found["text"] += choice.text
            found["finish_reason"] = choice.finish_reason
            if choice.logprobs is not None:
                for name, values in choice.logprobs.model_dump().items():
                    found.setdefault("logprobs", {}).setdefault(name, []).extend(values)
    return [choices[index] for index in sorted(choices)], last.usage


def dumped(choice: CompletionChoice, index: int) -> dict[str, Any]:
    made = choice.model_dump(exclude_none=True) | {"index": index}
    if choice.logprobs is not None:  # whose first values may be null
        made["logprobs"] = choice.logprobs.model_dump()
    return made


@pytest.mark.parametrize("more", [{}, {"echo": True, "logprobs": 2}], ids=["plain", "echo"])
def test_each_prompt_is_answered_as_if_it_were_alone(api: OpenAI, more: dict[str, Any]) -> None:
    """Forty at once, through the real graph: calls of one request must not wait for each other."""
    asked = SAMPLED | more
    whole = api.completions.create(**asked, prompt=PROMPTS)
    found = [dumped(choice, choice.index) for choice in whole.choices]
    assert [choice["index"] for choice in found] == list(range(80))
    usage: Counter[str] = Counter()
    for number in (0, 17, 39):
        alone = api.completions.create(**asked, prompt=PROMPTS[number])
        assert [dumped(c, number * 2 + c.index) for c in alone.choices] == (
            found[number * 2 : number * 2 + 2]
        )
    for prompt in PROMPTS:
        alone = api.completions.create(**asked, prompt=prompt)
        assert alone.usage is not None
        usage.update(alone.usage.model_dump(exclude_none=True))
    assert whole.usage is not None
    assert whole.usage.model_dump(exclude_none=True) == usage
    assert streamed(api, asked | {"prompt": PROMPTS}) == (found, whole.usage)


def test_token_ids_are_the_text_that_they_stand_for(api: OpenAI) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(REPOSITORY / "demo" / "model")
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:3]]
    asked = SAMPLED | {"echo": True, "logprobs": 1}
    of_texts = api.completions.create(**asked, prompt=PROMPTS[:3]).choices
    assert api.completions.create(**asked, prompt=ids).choices == of_texts
    assert api.completions.create(**asked, prompt=ids[0]).choices == of_texts[:2]
    assert api.completions.create(**asked, prompt=[ids[0]]).choices == of_texts[:2]
    assert all(c.text.startswith(PROMPTS[c.index // 2]) for c in of_texts)


def test_an_evaluation_reads_the_likelihood_of_a_continuation(api: OpenAI) -> None:
    """As lm-eval does: one token is generated, and cut off, whatever it is."""
    tokenizer: Any = AutoTokenizer.from_pretrained(REPOSITORY / "demo" / "model")
    context, continuation = "One, two, three,", " four"
    ids = tokenizer(context)["input_ids"]
    rest = tokenizer(context + continuation)["input_ids"][len(ids) :]
    asked: dict[str, Any] = {"model": "demo", "temperature": 0, "seed": 1234}
    asked |= {"echo": True, "logprobs": 1}
    end: dict[str, Any] = {"logit_bias": {str(tokenizer.eos_token_id): 100}}
    sums = []
    for more in (dict[str, Any](), end):
        answer = api.completions.create(**asked, max_tokens=1, prompt=[[*ids, *rest]], **more)
        (choice,) = answer.choices
        assert choice.logprobs is not None
        listed = choice.logprobs.model_dump()
        assert len(listed["token_logprobs"]) == len(ids) + len(rest) + 1
        sums.append(sum(listed["token_logprobs"][len(ids) : -1]))
        assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
        for logprob, top in zip(
            listed["token_logprobs"][1:], listed["top_logprobs"][1:], strict=True
        ):
            assert logprob in top.values()
            assert logprob <= max(top.values())
        text = choice.text
        for name, offset in zip(listed["tokens"], listed["text_offset"], strict=True):
            assert offset == len(text) or text[offset:].startswith(name)
    unscored = api.completions.create(**asked, max_tokens=0, prompt=[[*ids, *rest]])
    assert unscored.usage is not None
    assert unscored.usage.completion_tokens == 0
    assert unscored.choices[0].finish_reason == "length"
    assert unscored.choices[0].text == context + continuation
    logprobs = unscored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    sums.append(sum(logprobs.token_logprobs[len(ids) :]))
    assert sums[0] == sums[1] == sums[2] < 0


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"prompt": ["a", "b", "c", "word " * 20_000]}, "prompt.3"),
        ({"prompt": [[1], [2, 10**6]]}, "prompt.1.1"),
        ({"prompt": ["a", ""]}, "prompt.1"),
        ({"prompt": ["a"] * 513}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 50}, "n"),
        ({"prompt": ["a", "b"], "max_tokens": 100_000}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_bad_prompt_is_named(api: OpenAI, settings: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            list(api.completions.create(model="demo", stream=stream, **settings))
        assert caught.value.param == param
        assert param in caught.value.message


def test_an_echo_is_bounded(api: OpenAI) -> None:
    """Each of the choices begins with all log probabilities of its prompt."""
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 0, "echo": True, "logprobs": 20}
    long = [5] * 2000
    assert api.completions.create(**asked, prompt=long[:500], n=2).choices
    several: dict[str, Any] = {"prompt": [long] * 15, "n": 2}
    for too_much in ({"prompt": long, "n": 30}, several, several | {"stream": True}):
        with pytest.raises(openai.APIError, match="may be at most 1048576") as caught:
            list(api.completions.create(**asked | too_much))
        assert caught.value.param == "logprobs"


# --- In front of replicas that do what the prompts say -------------------------------------------


class Counting(StandIn):
    """Has room for some tasks, and counts how many run."""

    room = 100
    running: ClassVar[Counter[str]] = Counter()
    most = 0
    cancelled: ClassVar[Counter[str]] = Counter()

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        act = str(task.messages[0].content)
        if self.running.total() >= Counting.room:
            raise Overloaded("full", retry_after_s=1)
        self.running[act] += 1
        Counting.most = max(Counting.most, self.running.total())
        try:
            if act == "refuse":
                await asyncio.sleep(0.1)
                raise TaskArgsInvalid("messages: no", param="messages")
            yield chunk(f"{act} ")
            await asyncio.sleep(30 if act == "hang" else 0.01)
            yield chunk("ok", "stop")
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled[act] += 1
            raise
        finally:
            self.running[act] -= 1


@pytest.fixture(scope="module")
def make() -> Callable[..., ASGIApp]:
    return app_maker(Counting)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.http.clients.openai.prompt_list.PAUSE_S", 0.05)
    monkeypatch.setattr("serve_app.graph.load_shedding.HOLD_S", 0.0)
    Counting.room, Counting.most = 100, 0
    Counting.running.clear()
    Counting.cancelled.clear()


async def sent(
    app: ASGIApp, prompts: list[str], *, stream: bool = False, key: str | None = None
) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    body = {"model": "demo", "prompt": prompts, "stream": stream}
    async with client(app) as http:
        return await http.post("/v1/completions", json=body, headers=headers)


def texts_of(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    if not response.headers["content-type"].startswith("text/event-stream"):
        return [choice["text"] for choice in response.json()["choices"]]
    found: dict[int, str] = {}
    for event in events_of(response.text):
        for choice in event["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("room", [100, 5, 1])
async def test_a_few_run_at_a_time_and_wait_for_room(
    make: Callable[..., ASGIApp], room: int, stream: bool
) -> None:
    Counting.room = room
    prompts = [str(number) for number in range(30)]
    response = await sent(make(prompts_at_once=8), prompts, stream=stream)
    assert texts_of(response) == [f"{prompt} ok" for prompt in prompts]
    assert Counting.most == min(room, 8)


async def test_without_room_for_one_the_request_is_refused(make: Callable[..., ASGIApp]) -> None:
    Counting.room = 0
    response = await sent(make(), ["a", "b", "c"])
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "server_is_overloaded"
    assert "retry-after" in response.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_one_ends_the_others(make: Callable[..., ASGIApp], stream: bool) -> None:
    response = await sent(make(), ["hang", "hang", "refuse", "hang"], stream=stream)
    if stream:
        error = events_of(response.text)[-1]["error"]
    else:
        assert response.status_code == 400
        error = response.json()["error"]
    assert (error["param"], error["message"]) == ("prompt.2", "prompt.2: no")
    for _ in range(300):
        if Counting.cancelled["hang"] == 3:
            break
        await asyncio.sleep(0.01)
    assert Counting.cancelled["hang"] == 3
    assert not Counting.running.total()


async def test_all_share_one_deadline(make: Callable[..., ASGIApp]) -> None:
    response = await sent(make(request_timeout_s=0.3, prompts_at_once=2), ["hang"] * 20)
    assert response.json()["error"]["code"] == "request_timeout"


async def test_prompts_count_as_requests_of_a_key(
    make: Callable[..., ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdefghij"
    monkeypatch.setenv("SERVE_KEYS", f"alice: {key}")
    limits = {"max_concurrent": 3, "requests_per_minute": 50}
    app = make(auth={"keys_env": "SERVE_KEYS"} | limits)
    prompts = [str(number) for number in range(49)]
    assert len(texts_of(await sent(app, prompts, key=key))) == 49
    assert Counting.most == 3
    assert len(texts_of(await sent(app, ["a", "b", "c"], key=key))) == 3
    refused = await sent(app, ["a"], key=key)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert json.dumps(refused.json()).count("50 requests a minute") == 1


async def test_places_come_back(make: Callable[..., ASGIApp]) -> None:
    app = make(max_in_flight=4)
    for _ in range(3):
        assert len(texts_of(await sent(app, [str(n) for n in range(12)]))) == 12
        assert Counting.most == 4
    await sent(app, ["refuse", "hang", "hang", "hang"])
    assert len(texts_of(await sent(app, [str(n) for n in range(12)]))) == 12
