"""The client of a text service, against servers of this process that say what a test has them say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from text_services import NEEDS, TOKENS, WIDTH, embeddings

from diffuse.errors import ConfigError, DiffuseError, RunError
from diffuse.schema import TextBackendConfig
from diffuse.text_backends.api import ApiTexts
from diffuse.text_backends.backend import open_text_backend
from diffuse.text_backends.embeddings import TextEncoderIdentity
from diffuse.text_backends.forms import JSON, SAFETENSORS, to_json, to_safetensors

Handler = BaseHTTPRequestHandler
Behavior = Callable[[Handler], None]


@contextmanager
def served(*behaviors: Behavior) -> Iterator[tuple[str, list[Any]]]:
    """The address of a server whose n-th answer is by the n-th of `behaviors`, and the requests that it got."""
    requests: list[Any] = []
    left = list(behaviors)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((dict(self.headers), json.loads(body)))
            (left.pop(0) if len(left) > 1 else left[0])(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(data: bytes, kind: str = JSON, status: int = 200, length: int | None = None, **headers: str) -> Behavior:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def values(rows: int = 1, width: int = WIDTH, number: float = 0.5) -> bytes:
    return json.dumps({"embeddings": [[[number] * width]] * rows, "attention_mask": [[1]] * rows}).encode()


def test_it_waits_longer_each_time_and_then_succeeds() -> None:
    """After answers that are cut, busy, or none at all. The service may ask for a longer wait."""
    waits: list[float] = []
    good = says(to_safetensors(embeddings("a fox")), SAFETENSORS)
    busy = says(b'{"error": "busy"}', status=503)
    behaviors = says(b"{", length=50), busy, lambda _: None, says(b"", status=429, Retry_After="9"), busy, good
    with served(*behaviors) as (url, requests):
        service = ApiTexts(url, token="secret", retries=5, wait=waits.append)
        (states,) = service.encode([" a fox "], NEEDS)
    assert torch.equal(states.states, embeddings("a fox").states[0].states)
    assert waits == [0.5, 1.0, 2.0, 9.0, 8.0] and len(requests) == 6
    headers, body = requests[0]
    assert body == {"prompts": ["a fox"], "max_sequence_length": TOKENS}
    assert headers["Authorization"] == "Bearer secret" and headers["Accept"].startswith(SAFETENSORS)
    assert service.as_record()["text_encoder"]["text_encoder"] == "a" * 64 and service.check(["a fox"], NEEDS) == []


def test_prompts_are_asked_for_once_and_given_back_in_order() -> None:
    with served(says(to_json(embeddings("b", "a")))) as (url, requests):
        states = ApiTexts(url).encode(["b", "a", " b"], NEEDS)
    assert requests[0][1]["prompts"] == ["b", "a"] and states[0] is states[2] and len(states) == 3


def test_a_service_that_says_nothing_of_itself_is_noted() -> None:
    with served(says(values())) as (url, _):
        service = ApiTexts(url)
        service.encode(["x"], NEEDS)
    assert "does not say which text encoder made the embeddings" in service.check(["x"], NEEDS)[0]


def other(**changes: Any) -> bytes:
    found = json.loads(to_json(embeddings("x")))
    return json.dumps(found | changes).encode()


@pytest.mark.parametrize(
    ("behavior", "kind", "said"),
    [
        (says(b"<html>", "text/html"), ConfigError, "the answer is no JSON"),
        (says(values(2)), ConfigError, "has embeddings of 2 prompts; 1 were asked for"),
        (says(values(width=8)), ConfigError, "are 8 wide, and this model takes 12; they are of another text encoder"),
        (says(values(number=float("nan"))), ConfigError, "the embeddings hold NaN or an infinity"),
        (says(other(max_sequence_length=64)), ConfigError, "max_sequence_length is 64, and this model takes 32"),
        (says(to_safetensors(embeddings("y")), SAFETENSORS), ConfigError, "the embeddings of other prompts"),
        (says(b"x" * 10, SAFETENSORS), ConfigError, "is no safetensors data; is it a service of text embeddings"),
        (says(b"x" * (2 << 20), SAFETENSORS), ConfigError, "answers with more than embeddings take"),
        (
            says(other(text_encoder={"text_encoder": "f" * 64, "source": "another"})),
            ConfigError,
            "of another model (another): its text encoder ffffffffffff, and here aaaaaaaaaaaa",
        ),
        (says(b'{"error": "the bearer token is wrong"}', status=401), ConfigError, "token is wrong; set text_backend"),
        (says(b'{"error": "no\\nway"}', status=413), ConfigError, "answers 413: no way; is it a service"),
        (says(b"", status=404), ConfigError, "answers 404 Not Found; is it a service"),
        (says(b"", status=302, Location="http://127.0.0.1:1/"), ConfigError, "answers 302 Found: it is somewhere else"),
        (says(b'{"error": "it broke"}', status=500), RunError, "answers 500: it broke; see the messages"),
        (says(b'{"error": "full"}', status=429, Retry_After="\xb2"), RunError, "answers 429: full; asked 3 times"),
        (
            says(b'{"error": "full"}', status=429),
            RunError,
            "answers 429: full; asked 3 times; start diffuse",
        ),
        (lambda _: None, RunError, "cannot be reached: "),
    ],
)
def test_a_wrong_answer_is_one_line(behavior: Behavior, kind: type[DiffuseError], said: str) -> None:
    with served(behavior) as (url, _), pytest.raises(kind) as caught:
        ApiTexts(url, retries=2, wait=lambda _: None).encode(["x"], NEEDS)
    assert str(caught.value).startswith(f"{url}: ") and said in str(caught.value)


def test_a_service_that_never_answers() -> None:
    """Or sends a little of an answer again and again."""
    end = threading.Event()

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not end.wait(0.02):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    for behavior in (lambda _: end.wait(), drip):
        end.clear()
        with served(behavior) as (url, _):
            with pytest.raises(RunError, match=r"does not answer within 0.2 s; asked 2 times"):
                ApiTexts(url, timeout=0.2, retries=1, wait=lambda _: None).encode(["x"], NEEDS)
            end.set()


def test_only_the_text_encoder_that_the_user_names() -> None:
    identity = TextEncoderIdentity("f" * 64)
    with served(says(other(text_encoder=identity.as_json()))) as (url, _):
        ApiTexts(url, text_encoder_sha256="f" * 64).encode(["x"], NEEDS)
        with pytest.raises(ConfigError, match="text_encoder_sha256 asks for 000000000000"):
            ApiTexts(url, text_encoder_sha256="0" * 64).encode(["x"], NEEDS)


@pytest.mark.parametrize("token", ["secret\r", "s\u00e9cret", "sec\u0159et", "sec ret", "sec\udcffret"])
def test_a_token_of_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """It is named, and not shown."""
    monkeypatch.setenv("DIFFUSE_TEXT_TOKEN", token)
    with pytest.raises(ConfigError) as caught:
        open_text_backend(TextBackendConfig(name="api", url="http://localhost:1"))
    assert str(caught.value).startswith("DIFFUSE_TEXT_TOKEN: should be letters") and token not in str(caught.value)
    assert open_text_backend(TextBackendConfig(name="api", url="http://localhost:1", token="own")) is not None
