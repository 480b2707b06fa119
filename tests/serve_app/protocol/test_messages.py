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

MESSAGES: list[Message] = [Started("replica"), Alive(), Chunk(chunk("é ", "stop"))]


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("serializer", [pickle, cloudpickle])
def test_a_message_arrives_as_it_was(message: Message, serializer: Any) -> None:
    dumped = serializer.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    assert serializer.loads(dumped) == message
    assert not hasattr(message, "__dict__")


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_not_changed(message: Message) -> None:
    for field in dataclasses.fields(message):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, field.name, None)


def test_replicas_have_the_method_of_the_protocol() -> None:
    """mypy checks that the signatures agree."""
    replicas: list[type[TaskReplica]] = [ModelReplica, PoolReplica, ScriptedReplica]
    assert all(not hasattr(replica, "run") for replica in replicas)
