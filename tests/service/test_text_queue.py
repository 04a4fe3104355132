"""The queue of the text service: order, batches, what is held, and errors."""

from __future__ import annotations

import pytest
from command import until
from processes import LIMIT
from text_services import TOKENS, LetterEncoder

from diffuse.service.text_queue import QueueClosed, QueueFull, TextQueue


def test_a_batch_takes_what_waits_and_each_prompt_once() -> None:
    encoder = LetterEncoder()
    encoder.gate.clear()
    queue = TextQueue(encoder.encode, capacity=8, batch_size=3)
    try:
        requests = [queue.submit(["a"], TOKENS)]
        assert encoder.begun.acquire(timeout=LIMIT)
        requests += [queue.submit(texts, TOKENS) for texts in (["b", "c"], ["c", "d"], ["b"])]
        requests.append(queue.submit(["e"], TOKENS - 1))
        with pytest.raises(QueueFull):
            queue.submit(["f", "g"], TOKENS)
        encoder.gate.set()
        for request in requests:
            assert len(request.future.result(LIMIT)) == len(request.prompts)
            queue.release(request)
        assert encoder.calls == [["a"], ["b", "c", "d"], ["e"]] and queue.held == 0
    finally:
        queue.close()
    with pytest.raises(QueueClosed):
        queue.submit(["a"], TOKENS)


def test_nothing_is_begun_while_too_much_is_held() -> None:
    encoder = LetterEncoder()
    queue = TextQueue(encoder.encode, capacity=8, max_held=1)
    try:
        first = queue.submit(["a"], TOKENS)
        first.future.result(LIMIT)
        second = queue.submit(["b"], TOKENS)
        assert queue.held > 0 and not second.future.done() and encoder.calls == [["a"]]
        queue.release(first)
        second.future.result(LIMIT)
        queue.release(second)
    finally:
        queue.close()


def test_a_prompt_that_a_request_has_twice_waits_once_and_an_answer_is_held_for_its_states() -> None:
    encoder = LetterEncoder()
    encoder.gate.clear()
    queue = TextQueue(encoder.encode, capacity=3)
    try:
        first, second = queue.submit(["a", "a"], TOKENS), queue.submit(["b", "b", "c"], TOKENS)
        assert queue.waiting == 3
        encoder.gate.set()
        assert len(first.future.result(LIMIT)) == 2 and len(second.future.result(LIMIT)) == 3
        queue.release(second)
        queue.hold_answer(first, 1000)
        assert queue.held == 1000 and not first.states
        queue.release(first)
        assert queue.held == queue.waiting == 0
    finally:
        queue.close()


def test_an_error_ends_those_that_it_concerns() -> None:
    encoder = LetterEncoder()
    queue = TextQueue(encoder.encode, capacity=8)
    try:
        wrong, right = queue.submit(["fail", "x"], TOKENS), queue.submit(["y"], TOKENS)
        with pytest.raises(ValueError, match="no such word"):
            wrong.future.result(LIMIT)
        assert right.future.result(LIMIT)
        queue.release(right)
    finally:
        queue.close()


def test_waiting_requests_are_refused_when_it_stops() -> None:
    encoder = LetterEncoder()
    encoder.gate.clear()
    queue = TextQueue(encoder.encode, capacity=8)
    try:
        first = queue.submit(["a"], TOKENS)
        assert encoder.begun.acquire(timeout=LIMIT)
        second = queue.submit(["b"], TOKENS)
        queue.is_stopping = lambda: True
        encoder.gate.set()
        assert first.future.result(LIMIT)
        until(second.future.done)
        with pytest.raises(QueueClosed):
            second.future.result(LIMIT)
    finally:
        queue.close()
