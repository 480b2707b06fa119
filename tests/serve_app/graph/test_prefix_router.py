"""Which replica a task is sent to: by its prefix, unless the load becomes too uneven."""

from __future__ import annotations

from typing import Any

from schema import Task
from serve_app.graph.ejection import EJECTED_S, EjectedReplicas
from serve_app.graph.prefix_key import MIN_CHARS, prefix_key

LONG = "You are a careful assistant. " * (MIN_CHARS // 20)


def task(*messages: tuple[str, Any], **fields: Any) -> Task:
    said = [{"role": role, "content": content} for role, content in messages]
    return Task.from_fields(model="demo", messages=said, **fields)


def test_all_turns_of_a_conversation_have_the_same_prefix() -> None:
    turns = [("system", LONG), ("user", "Hello."), ("assistant", "Hi!"), ("user", "Go on.")]
    first = prefix_key(task(*turns[:2]))
    assert first
    assert prefix_key(task(*turns)) == first
    assert prefix_key(task(*turns, seed=7, generation_config={"max_new_tokens": 9})) == first
    others = [
        task(("system", LONG), ("user", "Good day.")),
        task(("system", LONG + "!"), ("user", "Hello.")),
        task(("user", LONG), ("user", "Hello.")),
        task(*turns, tools=[{"type": "function", "function": {"name": "f"}}]),
    ]
    assert len({first, *map(prefix_key, others)}) == len(others) + 1


def test_an_image_is_part_of_the_prefix() -> None:
    def about(image: str) -> str:
        blocks = [{"type": "image", "base64": image}, {"type": "text", "text": "What is it?"}]
        return prefix_key(task(("user", blocks)))

    assert about("A" * 4000) == about("A" * 4000) != about("A" * 3996 + "BBBB")


def test_a_short_prefix_does_not_matter() -> None:
    assert prefix_key(task(("user", "Hello."), ("assistant", LONG), ("user", "?"))) == ""


def test_an_ejected_replica_is_used_again() -> None:
    now = 0.0
    ejected = EjectedReplicas(lambda: now)
    ejected.add("a")
    assert "a" in ejected
    assert "b" not in ejected
    now = EJECTED_S + 1
    assert "a" not in ejected


def test_an_adapter_has_prefixes_of_its_own() -> None:
    def key(model: str, text: str) -> str:
        return prefix_key(task(("user", text)).model_copy(update={"model": model}))

    names = ("demo", "demo:sql", "demo:law")
    assert len({key(name, text) for name in names for text in ("Hello.", LONG)}) == 2 * len(names)
    # Where the prefix is short, all tasks of an adapter go where it is loaded.
    assert key("demo:sql", "Hello.") == key("demo:sql", "Good day.")
