"""Forward contexts: bounded in bytes per owner, evicted, expired, private to their owner and model."""

import gc
import weakref

import pytest
import torch

from exodus_service.errors import ServiceError
from exodus_service.models.forward_contexts import ForwardContexts


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def expired(contexts: ForwardContexts, owner: str, handle: str, group: str = "") -> bool:
    try:
        contexts.get(owner, handle, group)
    except ServiceError as problem:
        return problem.code == "context_expired"
    return False


def test_a_context_is_found_by_its_owner_and_group_only() -> None:
    contexts = ForwardContexts(100, 10)
    value = object()
    handle = contexts.put("a", value, 10, "model")
    assert contexts.get("a", handle, "model") is value
    assert expired(contexts, "b", handle, "model")
    assert expired(contexts, "a", handle)
    assert expired(contexts, "a", handle, "other")
    assert expired(contexts, "a", "no such handle")


def test_handles_differ_and_are_long() -> None:
    contexts = ForwardContexts(10_000, 10)
    handles = {contexts.put("a", None, 1) for _ in range(100)}
    assert len(handles) == 100
    assert all(len(handle) >= 32 for handle in handles)


def test_the_least_recently_used_contexts_of_an_owner_are_evicted() -> None:
    contexts = ForwardContexts(100, 10)
    first, second = (contexts.put("a", name, 50) for name in ("first", "second"))
    other = contexts.put("b", "other", 100)
    contexts.get("a", first)
    third = contexts.put("a", "third", 40)
    assert expired(contexts, "a", second)
    assert contexts.get("a", first) == "first"
    assert contexts.get("a", third) == "third"
    assert contexts.get("b", other) == "other"
    assert contexts.nbytes("a") == 90


def test_a_context_larger_than_the_bound_is_refused_and_evicts_nothing() -> None:
    contexts = ForwardContexts(100, 10)
    kept = contexts.put("a", "kept", 100)
    with pytest.raises(ServiceError, match=r"101 bytes.*100") as caught:
        contexts.put("a", "large", 101)
    assert caught.value.code == "too_large"
    assert contexts.get("a", kept) == "kept"


def test_an_unused_context_expires_and_each_use_extends_its_life() -> None:
    clock = Clock()
    contexts = ForwardContexts(100, 10, clock)
    used, unused = contexts.put("a", "used", 1), contexts.put("a", "unused", 1)
    clock.now = 9
    contexts.get("a", used)
    clock.now = 10
    assert expired(contexts, "a", unused)
    assert contexts.get("a", used) == "used"
    clock.now = 20
    assert expired(contexts, "a", used)


def test_expired_contexts_are_evicted_before_live_ones() -> None:
    clock = Clock()
    contexts = ForwardContexts(100, 10, clock)
    contexts.put("a", "old", 60)
    clock.now = 5
    live = contexts.put("a", "live", 40)
    clock.now = 10
    contexts.put("a", "new", 60)
    assert contexts.get("a", live) == "live"


def test_released_contexts_are_gone_and_releasing_twice_is_no_error() -> None:
    contexts = ForwardContexts(100, 10)
    handle = contexts.put("a", "value", 10)
    contexts.release("b", handle)
    assert contexts.get("a", handle) == "value"
    contexts.release("a", handle)
    contexts.release("a", handle)
    assert expired(contexts, "a", handle)
    assert contexts.nbytes("a") == 0


def test_forgetting_a_group_leaves_the_others() -> None:
    contexts = ForwardContexts(100, 10)
    gone, kept = contexts.put("a", 1, 1, "m"), contexts.put("a", 2, 1, "n")
    others = contexts.put("b", 3, 1, "m")
    contexts.forget("a", "m")
    contexts.forget("nobody", "m")
    assert expired(contexts, "a", gone, "m")
    assert contexts.get("a", kept, "n") == 2
    assert contexts.get("b", others, "m") == 3


def test_sweeping_frees_the_expired_contexts_of_inactive_owners() -> None:
    clock = Clock()
    contexts = ForwardContexts(100, 10, clock)
    value = torch.zeros(3)
    alive = weakref.ref(value)
    contexts.put("a", value, 10)
    del value
    clock.now = 10
    contexts.sweep()
    gc.collect()
    assert alive() is None


def test_small_contexts_count_their_overhead() -> None:
    contexts = ForwardContexts(1000, 10, least=100)
    handles = [contexts.put("a", number, 0) for number in range(11)]
    assert contexts.nbytes("a") == 1000
    assert expired(contexts, "a", handles[0])
    assert contexts.get("a", handles[1]) == 1
    assert contexts.get("b", contexts.put("b", "large", 1000)) == "large"
    assert contexts.nbytes("b") == 1000
