"""The text service: many clients, restarts, wrong requests, slow clients, the end."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import film_peers
import pytest
import torch
from command import diffuse as command
from command import finished, start, until
from processes import LIMIT
from text_services import NEEDS, TOKENS, LetterEncoder, client, running

from diffuse.config.compose import compose_config
from diffuse.errors import ConfigError, RunError
from diffuse.run.text_encoder import open_text_encoder
from diffuse.service.serve import TextServer, serve_text
from diffuse.service.settings import ServiceSettings
from diffuse.text_backends.api import ApiTexts
from diffuse.text_backends.embeddings import TextNeeds, TextStates
from diffuse.text_backends.forms import JSON, SAFETENSORS, from_json, from_safetensors

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def server() -> Iterator[TextServer]:
    with running(LetterEncoder(), TOKEN, max_body=2000, max_prompts=3, max_prompt_length=500) as server:
        yield server


def ask(server: TextServer, body: Any, method: str = "POST", path: str = "/encode", **headers: str) -> tuple[int, Any]:
    """The status of an answer, and its content."""
    address = urlsplit(server.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=LIMIT)
    sent = {"Content-Type": JSON, "Authorization": f"Bearer {TOKEN}", "Accept": JSON}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), sent)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(data) if answer.headers.get_content_type() == JSON else data


def test_both_forms_hold_the_states_to_the_bit(server: TextServer) -> None:
    body = {"prompts": ["a fox", "an owl at night"], "max_sequence_length": 16}
    status, values = ask(server, body)
    assert status == 200 and [len(row) for row in values["embeddings"]] == [16, 16]
    assert values["attention_mask"][0] == [0] * 10 + [1] * 6
    _, data = ask(server, body, path="/", Accept=f"{SAFETENSORS}, {JSON};q=0.5")
    for found in (from_json(json.dumps(values).encode(), body["prompts"], 16, "x"), from_safetensors(data, "x")):
        for prompt, states in zip(body["prompts"], found.states, strict=True):
            expected = LetterEncoder().states(prompt, 16)
            assert torch.equal(states.states, expected.states) and torch.equal(states.mask, expected.mask)


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        ({"prompts": ["x"]}, {"Authorization": ""}, 401, "a bearer token is needed"),
        ({"prompts": ["x"]}, {"Authorization": f"Bearer {TOKEN}x"}, 401, "the bearer token is wrong"),
        ({"prompts": ["x"]}, {"Authorization": "Bearer \xe9"}, 401, "the bearer token is wrong"),
        ({"prompts": ["x"]}, {"Content_Type": "text/plain"}, 415, "the request should be application/json"),
        ({"prompts": ["x"]}, {"Accept": "image/png"}, 406, "the answer is application/json or"),
        (b"{" * 1000, {}, 400, "the request is no JSON"),
        (b"[" * 1900, {}, 400, "the request is no JSON"),
        (b"\xff\xfe", {}, 400, "the request is no JSON"),
        ({"prompts": "x"}, {}, 400, "the request should be"),
        ({"prompts": []}, {}, 400, "the request should be"),
        ({"prompts": [1]}, {}, 400, "the request should be"),
        (["x"], {}, 400, "the request should be"),
        ({"prompts": ["x"], "max_sequence_length": TOKENS + 1}, {}, 400, "should be a whole number from 8 to 32"),
        ({"prompts": ["x"], "max_sequence_length": True}, {}, 400, "should be a whole number from 8 to 32"),
        (b'{"prompts": ["\\ud800"]}', {}, 400, "half a letter"),
        ({"prompts": ["x"] * 4}, {}, 413, "4 prompts; a request may have 3"),
        ({"prompts": ["x" * 501]}, {}, 413, "a prompt of 501 characters; it may have 500"),
        ({"prompts": ["x" * 2000]}, {}, 413, "the request is larger than 2000 bytes"),
        ({"prompts": ["nan"]}, {}, 500, "the text encoder gave NaN"),
        ({"prompts": ["fail"]}, {}, 500, "could not be encoded"),
    ],
)
def test_a_wrong_request_is_refused(
    server: TextServer, body: Any, headers: dict[str, str], status: int, said: str
) -> None:
    found, values = ask(server, body, **headers)
    assert found == status and said in values["error"] and "\n" not in values["error"]
    assert server.queue.held == 0


def test_a_body_without_a_length_is_limited_too(server: TextServer) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), LIMIT) as link:
        link.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode())
        link.sendall(b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        link.sendall(b"7d1\r\n" + b"x" * 2001 + b"\r\n")
        assert link.recv(100).startswith(b"HTTP/1.1 413")


def test_health_and_metrics(server: TextServer) -> None:
    status, values = ask(server, b"", "GET", "/health", Authorization="")
    assert status == 200 and values["status"] == "ok" and values["text_encoder"]["text_encoder"] == "a" * 64
    assert "source" not in values["text_encoder"]
    assert ask(server, b"", "GET", "/metrics", Authorization="")[0] == 401
    ask(server, {"prompts": ["counted"]})
    status, data = ask(server, b"", "GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in data.decode().splitlines() if not line.startswith("#"))
    assert status == 200 and int(lines['diffuse_text_requests_total{status="401"}']) >= 1
    assert int(lines["diffuse_text_prompts_encoded_total"]) >= 1 and lines["diffuse_text_prompts_waiting"] == "0"
    assert ask(server, b"", "GET", "/nowhere")[1] == {"error": "Not Found"}
    assert ask(server, b"", "GET", "/encode")[0] == 405


def test_eight_clients_through_a_kill_and_a_restart() -> None:
    """While their prompts wait, the service is killed; the next one, on the same port, answers all of them."""
    first, restarted = LetterEncoder(), threading.Event()
    first.gate.clear()
    prompts = [[f"prompt {index}", "negative"] for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        with running(first, max_queue=16) as server:
            port = urlsplit(server.url).port
            clients = [client(server, retries=100, wait=lambda _: restarted.wait(LIMIT)) for _ in prompts]
            results = [pool.submit(each.encode, texts, NEEDS) for each, texts in zip(clients, prompts, strict=True)]
            until(lambda: server.queue.waiting == 16)
            server.server.force_exit = True
            server.stop()
            first.gate.set()
        second = LetterEncoder()
        with running(second, port=port, max_queue=16):
            restarted.set()
            for texts, result in zip(prompts, results, strict=True):
                for text, states in zip(texts, result.result(LIMIT), strict=True):
                    assert torch.equal(states.states, second.states(text).states)
    assert all(len(call) == 1 for call in second.calls)  # one by one, as for a local film


def test_what_is_computed_is_finished_and_what_waits_refused() -> None:
    """At the end of the service."""
    encoder = LetterEncoder()
    encoder.gate.clear()
    with ThreadPoolExecutor(2) as pool, running(encoder) as server:
        computed = pool.submit(client(server).encode, ["now"], NEEDS)
        assert encoder.begun.acquire(timeout=LIMIT)
        waiting = pool.submit(client(server).encode, ["later"], NEEDS)
        until(lambda: server.queue.waiting == 2)
        server.stop()
        encoder.gate.set()
        assert torch.equal(computed.result(LIMIT)[0].states, encoder.states("now").states)
        with pytest.raises(RunError, match="answers 503: the service stops; try again later; asked once"):
            waiting.result(LIMIT)
    with pytest.raises(RunError, match="cannot be reached: Connection refused; asked once; start diffuse serve-text"):
        client(server).encode(["x"], NEEDS)


def test_a_full_queue_refuses_and_a_client_that_leaves_makes_room() -> None:
    encoder = LetterEncoder()
    encoder.gate.clear()
    with running(encoder, max_queue=2) as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), LIMIT) as link:
            body = b'{"prompts": ["a", "b"]}'
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
            link.sendall(head.encode() + body)
            assert encoder.begun.acquire(timeout=LIMIT)
            status, values = ask(server, {"prompts": ["c"]})
            assert status == 429 and values["error"] == "2 prompts wait already; try again later"
        until(lambda: server.queue.waiting == 0)
        encoder.gate.set()
        assert ask(server, {"prompts": ["c"]})[0] == 200
        until(lambda: server.queue.held == 0)  # which comes after the client has its answer


def test_slow_clients_are_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """Whether they are slow with the head of a request, with its body, or in taking an answer of 50 MB."""
    with running(LetterEncoder(width=800_000), timeout=1) as server:
        address = urlsplit(server.url)
        head = f"POST / HTTP/1.1\r\nHost: x\r\nAccept: {SAFETENSORS}\r\nContent-Type: {JSON}\r\nContent-Length: 30\r\n"
        texts = (head, f"{head}\r\n{{", f'{head}\r\n{{"prompts": ["a long prompt"]}} ')
        links = [socket.create_connection((address.hostname, address.port), LIMIT) for _ in texts]
        try:
            for link, text in zip(links, texts, strict=True):
                link.sendall(text.encode())
            with pytest.raises(ConnectionResetError):
                if not links[0].recv(100):
                    raise ConnectionResetError
            assert links[1].recv(100).startswith(b"HTTP/1.1 408")
            until(lambda: "a client took no part of its answer within 1 s" in caplog.text)
            until(lambda: server.queue.held == 0)
        finally:
            for link in links:
                link.close()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", JSON),
        (f"{SAFETENSORS};q=0, */*", JSON),
        (f"{JSON};q=0.0, application/*", SAFETENSORS),
        (f"{SAFETENSORS}; Q=0.01", SAFETENSORS),
        (f"{JSON};q=0", None),
        ("*/*;q=0", None),
    ],
)
def test_a_kind_of_weight_0_is_not_sent(server: TextServer, accept: str, kind: str | None) -> None:
    status, answer = ask(server, {"prompts": ["x"]}, Accept=accept)
    found = None if status == 406 else JSON if isinstance(answer, dict) else SAFETENSORS
    assert found == kind


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/encode"])
def test_a_client_that_is_slow_after_an_answer_is_let_go(path: str) -> None:
    """With the head of its next request, of which it has sent some; a refusal ends the connection at once."""
    with running(LetterEncoder(), TOKEN, timeout=1) as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), LIMIT) as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = b""
            while not answer.endswith(b"}"):
                answer += link.recv(1000)
            assert (b"connection: close" in answer.lower()) is (path != "/health")
            with suppress(ConnectionError):
                link.sendall(b"GET /health HTTP/1.1\r\n")
                assert not link.recv(100)
            until(lambda: len(server.service.connections) == 0)


def test_connections_above_the_limit_are_told_and_then_closed() -> None:
    with running(LetterEncoder(), max_connections=1) as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), LIMIT):
            until(lambda: len(server.service.connections) == 1)
            assert ask(server, {"prompts": ["x"]}) == (503, {"error": "too many clients at once; try again later"})
            until(lambda: len(server.service.connections) == 1)
            with socket.create_connection((address.hostname, address.port), LIMIT):
                until(lambda: len(server.service.connections) == 2)
                with pytest.raises((ConnectionError, HTTPException)):
                    ask(server, {"prompts": ["x"]})


def test_mistakes_are_told_before_the_model_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port in use, and a token that no header carries. The model is nowhere."""
    cfg = compose_config(["model=ltx2", "model.source=/nowhere"])
    with running(LetterEncoder()) as server:
        port = urlsplit(server.url).port
        with pytest.raises(ConfigError, match=rf"^--host 127.0.0.1 --port {port}: cannot be used: Address already"):
            serve_text(cfg, ServiceSettings(port=port or 0), print)
    monkeypatch.setenv("DIFFUSE_TEXT_TOKEN", "secret\r")
    with pytest.raises(ConfigError, match=r"^DIFFUSE_TEXT_TOKEN: should be letters") as caught:
        serve_text(cfg, ServiceSettings(port=0), print)
    assert "secret" not in str(caught.value)


def served(*arguments: Any, cwd: Path) -> tuple[Any, str]:
    """`diffuse serve-text` in a process of its own, once it listens, and its address."""
    process = start("serve-text", *arguments, cwd=cwd)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_the_command_through_kill_9_to_its_end(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What eight clients get is what is computed here; what is too long takes no memory; SIGTERM ends with status 0."""
    model = ("model=ltx2", f"model.source={film_peers.tiny('2.0', tmp_path_factory).folder}", "hardware=cpu")
    refused = command("serve-text", *model, "--host", "0.0.0.0", "--port", "0", cwd=tmp_path)
    assert refused.status == 2 and "--host 0.0.0.0: other machines reach it, and would need no token" in refused.err
    encoder = open_text_encoder(compose_config([*model, "hardware.threads=1"]))
    needs = TextNeeds(encoder.encode(["x"])[0].states.shape[1], 1024, encoder.identity())
    process, url = served(*model, "hardware.threads=1", "--port", "0", cwd=tmp_path)
    restarted = threading.Event()
    answered: list[str] = []

    def encode(texts: list[str]) -> list[TextStates]:
        texts_of_service = ApiTexts(url, retries=100, timeout=LIMIT, wait=lambda _: restarted.wait(LIMIT))
        found = []
        for text in texts:
            found += texts_of_service.encode([text], needs)
            answered.append(text)
        return found

    prompts = [[f"prompt {number} of client {client}" for number in range(4)] for client in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(encode, texts) for texts in prompts]
        until(lambda: len(answered) > 3 or any(each.done() for each in results))
        process.kill()
        process.wait()
        process, again = served(*model, "hardware.threads=1", "--port", str(urlsplit(url).port), cwd=tmp_path)
        assert again == url
        restarted.set()
        for texts, result in zip(prompts, results, strict=True):
            for text, found in zip(texts, result.result(LIMIT), strict=True):
                assert torch.equal(found.states, encoder.encode([text])[0].states)
    before = peak_of(process.pid)
    with suppress(HTTPException, OSError):  # it closes before it has read all
        link = HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=LIMIT)
        link.request("POST", "/", b"x" * 100_000_000, {"Content-Type": JSON})
        assert link.getresponse().status == 413
        link.close()
    assert peak_of(process.pid) - before < 2**24
    process.send_signal(signal.SIGTERM)
    done = finished(process)
    assert done.status == 0 and done.err.splitlines()[-1] == "stopped"


def peak_of(process: int) -> int:
    """The most main memory that it has had, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
