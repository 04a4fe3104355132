"""The pages of the text service: embeddings, health and metrics, with clear refusals as JSON."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from diffuse.errors import DiffuseError
from diffuse.service.connections import Connections
from diffuse.service.settings import ServiceSettings
from diffuse.service.text_queue import QueueClosed, QueuedRequest, QueueFull, TextQueue
from diffuse.text_backends.embeddings import Embeddings, TextEncoderIdentity, TextStates
from diffuse.text_backends.forms import JSON, SAFETENSORS, to_json, to_safetensors

log = logging.getLogger(__name__)
MAX_JSON_NUMBERS = 8_000_000  # of an answer; as JSON each takes 20 bytes, and 100 in a program that reads it
_BLOCK = 256 << 10  # bytes of an answer that are handed to a client at once
_RETRY_SECONDS = "1"
_NO_WEIGHT = re.compile(r"q\s*=\s*0(\.0*)?")  # of a kind in Accept (RFC 9110, 12.4.2)

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TextService:
    """Answers requests.

    Args:
        queue: encodes.
        identity: the text encoder.
        tokens: of a prompt with its padding, at most and where a request does not say.
        token: that a request must carry; None for none.
    """

    def __init__(
        self,
        queue: TextQueue,
        identity: TextEncoderIdentity,
        tokens: int,
        settings: ServiceSettings,
        token: str | None,
        connections: Connections,
    ) -> None:
        self.queue, self.identity, self.tokens, self.settings, self.token = queue, identity, tokens, settings, token
        self.connections = connections
        self._answers = ThreadPoolExecutor(1, "answers")  # one by one: what JSON is made of is ten times the states
        self.statuses: Counter[int] = Counter()

    def app(self) -> Starlette:
        """Builds the ASGI application."""
        return Starlette(
            routes=[
                Route("/", self.encode, methods=["POST"]),
                Route("/encode", self.encode, methods=["POST"]),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
            ],
            exception_handlers={HTTPException: self._refused, Exception: self._failed},
        )

    async def health(self, request: Request) -> Response:
        """Returns that the service is there, and for which text encoder. It needs no token.

        Where the others do, whoever has none is not told the folder of the model.
        """
        self.connections.arrived(request)
        encoder = self.identity.as_json()
        if self.token is not None:
            del encoder["source"]
        values = {"status": "ok", "max_sequence_length": self.tokens, "waiting": self.queue.waiting}
        return self._counted(JSONResponse(values | {"text_encoder": encoder}))

    async def metrics(self, request: Request) -> Response:
        """Returns counts and times in Prometheus' text format."""
        self.connections.arrived(request)
        self._authorize(request)
        queue = self.queue
        lines = ["# TYPE diffuse_text_requests_total counter"]
        lines += [f'diffuse_text_requests_total{{status="{code}"}} {n}' for code, n in sorted(self.statuses.items())]
        for name, kind, value in (
            ("prompts_encoded_total", "counter", queue.encoded),
            ("batches_total", "counter", queue.batches),
            ("encode_seconds_total", "counter", f"{queue.seconds:.6f}"),
            ("prompts_waiting", "gauge", queue.waiting),
            ("bytes_held", "gauge", queue.held),
            ("connections", "gauge", len(self.connections)),
        ):
            lines += [f"# TYPE diffuse_text_{name} {kind}", f"diffuse_text_{name} {value}"]
        return self._counted(PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4"))

    async def encode(self, request: Request) -> Response:
        """Returns the embeddings `[B, T, D]` of a request's prompts, as JSON or as safetensors, as it accepts."""
        self.connections.arrived(request)
        try:
            form = self._check_head(request)
        except HTTPException:
            await self._skip_body(request)
            raise
        prompts, length = self._read_request(await self._body(request))
        try:
            queued = self.queue.submit([prompt.strip() for prompt in prompts], length)
        except QueueFull:
            raise _refusal(429, f"{self.queue.waiting} prompts wait already; try again later") from None
        except QueueClosed:
            raise _refusal(503, "the service stops; try again later") from None
        try:
            states = await self._result(queued, request)
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(self._answers, self._content, form, queued.prompts, states, length)
            self.queue.hold_answer(queued, len(content))
        except BaseException:
            self.queue.release(queued)
            raise
        release, abort = partial(self.queue.release, queued), partial(self.connections.abort, request)
        return self._counted(_Answer(content, form, self.settings.timeout, release, abort))

    async def _result(self, queued: QueuedRequest, request: Request) -> list[TextStates]:
        """Waits for the states. A client that goes away has its request forgotten."""
        result = asyncio.wrap_future(queued.future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(
            request.receive()
        )  # after the body, only that the client has gone
        try:
            both: set[asyncio.Future[Any]] = {result, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ClientDisconnect
            return result.result()
        except QueueClosed:
            raise _refusal(503, "the service stops; try again later") from None
        except (ClientDisconnect, HTTPException):
            raise _refusal(499, "the client has gone") from None
        except DiffuseError as error:
            raise _refusal(500, str(error)) from None
        except Exception:
            log.exception("a prompt could not be encoded")
            raise _refusal(500, "the prompts could not be encoded; see the messages of the service") from None
        finally:
            gone.cancel()

    def _content(self, form: str, prompts: Sequence[str], states: list[TextStates], length: int) -> bytes:
        """Returns the body of an answer."""
        embeddings = Embeddings(prompts, states, length, self.identity)
        if form == SAFETENSORS:
            return to_safetensors(embeddings)
        longest = max(len(each.states) for each in states)
        if sum(longest * each.states.shape[1] for each in states) > MAX_JSON_NUMBERS:
            raise _refusal(
                413, f"the embeddings are more than {MAX_JSON_NUMBERS} numbers of JSON; send Accept: {SAFETENSORS}"
            )
        try:
            return to_json(embeddings)
        except ValueError:
            raise _refusal(500, "the text encoder gave NaN or an infinity; use another precision") from None

    def _check_head(self, request: Request) -> str:
        """Checks all but the body of a request. Returns the media type of the answer."""
        self._authorize(request)
        if len(self.connections) > self.settings.max_connections:
            raise _refusal(503, "too many clients at once; try again later")
        form = _form(request.headers.get("accept", "*/*"))
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise _refusal(415, f"the request should be {JSON}")
        return form

    async def _skip_body(self, request: Request) -> None:
        """Reads the body of a request that is refused: a client that still sends may miss the answer."""
        left = self.settings.max_body
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(self.settings.timeout):
                async for block in request.stream():
                    left -= len(block)
                    if left < 0:
                        break

    async def _body(self, request: Request) -> bytes:
        """Reads the body of a request, within its limits of size and time."""
        most = self.settings.max_body
        refusal = _refusal(413, f"the request is larger than {most} bytes; send fewer or shorter prompts")
        length = request.headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > most:
            raise refusal
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for block in request.stream():
                    body += block
                    if len(body) > most:
                        raise refusal
        except TimeoutError:
            raise _refusal(408, f"the request did not arrive within {self.settings.timeout} s") from None
        except ClientDisconnect:
            raise _refusal(499, "the client has gone") from None
        return bytes(body)

    def _read_request(self, body: bytes) -> tuple[list[str], int]:
        """Returns the prompts of a request and the length that they are padded to."""
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            raise _refusal(400, "the request is no JSON") from None
        prompts = values.get("prompts") if isinstance(values, dict) else None
        if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) for each in prompts):
            raise _refusal(400, 'the request should be {"prompts": ["..."], "max_sequence_length": N}')
        if len(prompts) > self.settings.max_prompts:
            raise _refusal(413, f"{len(prompts)} prompts; a request may have {self.settings.max_prompts}")
        for prompt in prompts:
            if len(prompt) > self.settings.max_prompt_length:
                most = self.settings.max_prompt_length
                raise _refusal(413, f"a prompt of {len(prompt)} characters; it may have {most}")
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise _refusal(400, "a prompt holds half a letter (a lone surrogate)") from None
        length = values.get("max_sequence_length", self.tokens)
        if type(length) is not int or not 8 <= length <= self.tokens:
            raise _refusal(400, f"max_sequence_length should be a whole number from 8 to {self.tokens}")
        return prompts, length

    def _authorize(self, request: Request) -> None:
        if self.token is None:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            wrong = "the bearer token is wrong" if given else "a bearer token is needed"
            raise _refusal(401, wrong)

    async def _refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code in (429, 503):
            headers["Retry-After"] = _RETRY_SECONDS
        if error.status_code == 401:
            headers["WWW-Authenticate"] = "Bearer"
        headers["Connection"] = "close"  # what else the client sends is not read
        return self._counted(JSONResponse({"error": error.detail}, error.status_code, headers))

    async def _failed(self, _: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        said = {"error": "the service failed; see its messages"}
        return self._counted(JSONResponse(said, 500, {"Connection": "close"}))

    def _counted(self, response: Response) -> Response:
        self.statuses[response.status_code] += 1
        return response


class _Answer(Response):
    """Sends its content in parts, and ends the connection to a client that takes none for too long.

    Args:
        release: called when nothing more is sent.
        abort: ends the connection.
    """

    def __init__(
        self, content: bytes, form: str, timeout: int, release: Callable[[], None], abort: Callable[[], None]
    ) -> None:
        super().__init__(content, media_type=form)
        self.timeout, self.release, self.abort = timeout, release, abort

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        try:
            content = memoryview(bytes(self.body))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(content), _BLOCK):
                block = {"type": "http.response.body", "body": bytes(content[start : start + _BLOCK])}
                async with asyncio.timeout(self.timeout):
                    await send(block | {"more_body": start + _BLOCK < len(content)})
        except TimeoutError:
            log.warning("a client took no part of its answer within %d s; its connection is closed", self.timeout)
            self.abort()
        finally:
            self.release()


def _form(accept: str) -> str:
    """Returns the media type of the answer that a client asks for.

    That is the binary one where it is named, and JSON where it is not: for `*/*` and `application/*`, too. A kind of
    weight 0 is one that the client does not take.
    """
    parts = [[each.strip().lower() for each in part.split(";")] for part in accept.split(",")]
    refused = {kind for kind, *parameters in parts if any(map(_NO_WEIGHT.fullmatch, parameters))}
    kinds = {kind for kind, *_ in parts} - refused
    if SAFETENSORS in kinds:
        return SAFETENSORS
    if JSON in kinds:
        return JSON
    if kinds & {"application/*", "*/*", ""}:
        for form in (JSON, SAFETENSORS):
            if form not in refused:
                return form
    raise _refusal(406, f"the answer is {JSON} or {SAFETENSORS}; send one of them as Accept")


def _refusal(status: int, reason: str) -> HTTPException:
    return HTTPException(status, reason)
