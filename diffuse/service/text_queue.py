"""The queue of prompts that wait for the text encoder, and the thread that encodes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from diffuse.text_backends.embeddings import TextStates

MAX_HELD = 2 << 30  # bytes of states and answers that are computed and not yet sent; more are not begun

Encode = Callable[[Sequence[str], int], list[TextStates]]


class QueueFull(Exception):
    """Is raised for a request that the queue has no room for."""


class QueueClosed(Exception):
    """Is raised for a request that is not computed any more: the service stops."""


@dataclass(eq=False)
class QueuedRequest:
    """The prompts of one request, all of one length. Its `future` gets their states, in order."""

    prompts: Sequence[str]
    max_sequence_length: int
    future: Future[list[TextStates]] = field(default_factory=Future)
    states: dict[str, TextStates] = field(default_factory=dict)
    held: int = 0  # bytes of the states once there are all, and then of the answer


class TextQueue:
    """Encodes what waits, in the order of arrival. A prompt that several requests wait for is encoded once.

    Args:
        encode: returns the states of prompts that are computed together, of a length.
        capacity: prompts that may wait.
        batch_size: prompts that are computed together.
        max_held: bytes of states and answers that may be computed and not yet sent.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        capacity: int,
        batch_size: int = 1,
        max_held: int = MAX_HELD,
    ) -> None:
        self.capacity, self.batch_size, self.max_held = capacity, batch_size, max_held
        self.encoded = self.batches = self.held = 0  # prompts, batches, bytes
        self.seconds = 0.0
        self.is_stopping: Callable[[], bool] = lambda: False  # whether nothing new is to be begun
        self._encode = encode
        self._requests: list[QueuedRequest] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="text encoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Prompts that wait or are computed."""
        return sum(len({*each.prompts}) - len(each.states) for each in [*self._requests])

    def submit(self, prompts: Sequence[str], max_sequence_length: int) -> QueuedRequest:
        """Puts a request at the end.

        Raises:
            QueueFull: it has no room.
            QueueClosed: the service stops.
        """
        request = QueuedRequest(tuple(prompts), max_sequence_length)
        with self._changed:
            if self._closed or self.is_stopping():
                raise QueueClosed
            if self._requests and self.waiting + len({*prompts}) > self.capacity:
                raise QueueFull
            self._requests.append(request)
            self._changed.notify_all()
        return request

    def hold_answer(self, request: QueuedRequest, size: int) -> None:
        """Counts `size` bytes of an answer in place of the states, which the request forgets."""
        with self._changed:
            request.states, request.future = {}, Future()
            self.held += size - request.held
            request.held = size
            self._changed.notify_all()

    def release(self, request: QueuedRequest) -> None:
        """Forgets a request, whose answer was sent or whose client has gone."""
        with self._changed:
            if request in self._requests:
                self._requests.remove(request)
            request.future.cancel()
            self.held -= request.held
            request.held = 0
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread after what it computes now. Requests that are not computed get `QueueClosed`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            prompts, length = batch
            start = time.perf_counter()
            try:
                states, error = self._encode(prompts, length), None
            except Exception as failed:
                states, error = [], failed
            with self._changed:
                self.seconds += time.perf_counter() - start
                self.batches += 1
                self.encoded += len(states)
                if error is None:
                    self._give(dict(zip(prompts, states, strict=True)), length)
                else:
                    self._refuse([each for each in self._of_length(length) if {*each.prompts} & {*prompts}], error)

    def _next_batch(self) -> tuple[list[str], int] | None:
        """Returns the next prompts and their length, when there are some; None when the queue is closed."""
        with self._changed:
            while True:
                if self._closed or self.is_stopping():
                    self._refuse([*self._requests], QueueClosed())
                    if self._closed:
                        return None
                if self._requests and self.held < self.max_held:
                    length = self._requests[0].max_sequence_length
                    requests = self._of_length(length)
                    open_ = [text for each in requests for text in each.prompts if text not in each.states]
                    return list(dict.fromkeys(open_))[: self.batch_size], length
                self._changed.wait()

    def _of_length(self, length: int) -> list[QueuedRequest]:
        return [each for each in self._requests if each.max_sequence_length == length]

    def _give(self, states: dict[str, TextStates], length: int) -> None:
        """Gives states to the requests that wait for them. Those that have all are done."""
        for request in self._of_length(length):
            for text in request.prompts:
                if text in states and text not in request.states:
                    request.states[text] = states[text]
            if len(request.states) == len({*request.prompts}):
                self._requests.remove(request)
                if request.future.set_running_or_notify_cancel():
                    request.held = sum(each.states.nbytes for each in request.states.values())
                    self.held += request.held
                    request.future.set_result([request.states[text] for text in request.prompts])

    def _refuse(self, requests: Sequence[QueuedRequest], error: Exception) -> None:
        for request in requests:
            self._requests.remove(request)
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)
