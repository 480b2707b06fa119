"""Messages between replicas and the ingress survive both of Ray's transports."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from ray import cloudpickle

from serve_app.protocol.messages import Alive, Chunk, Message, Started, TaskReplica
from serve_app.replicas.model_replica import ModelReplica
from serve_app.replicas.pool_replica import PoolReplica
from tests.serve_app.scripted import ScriptedReplica, chunk

MESSAGES: list[Message] = [
    Started("replica"),
    Alive(),
    Alive(((1, 70_000), ())),
    Chunk(chunk("é ", "stop")),
    Chunk(chunk("é "), ((5,), (70_000, 8))),
]


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("serializer", [pickle, cloudpickle])
def test_a_message_arrives_as_it_was(message: Message, serializer: Any) -> None:
    dumped = serializer.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    assert serializer.loads(dumped) == message
    assert not hasattr(message, "__dict__")


def test_token_ids_take_few_bytes() -> None:
    """A token of a stream brings less than a tenth of what its chunk takes."""
    without, with_one = (len(pickle.dumps(Chunk(chunk("é "), ids))) for ids in ((), ((70_000,),)))
    assert with_one - without <= without / 10
    thousand = len(pickle.dumps(Alive((tuple(range(70_000, 71_000)),))))
    assert thousand <= 5 * 1000 + 100


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_not_changed(message: Message) -> None:
    for field in dataclasses.fields(message):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, field.name, None)


def test_replicas_have_the_method_of_the_protocol() -> None:
    """mypy checks that the signatures agree."""
    replicas: list[type[TaskReplica]] = [ModelReplica, PoolReplica, ScriptedReplica]
    assert all(not hasattr(replica, "run") for replica in replicas)
