"""Embeddings from a service on another machine: `diffuse serve-text`, or any with the same JSON."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from diffuse.errors import ConfigError, RunError, one_line
from diffuse.text_backends.embeddings import (
    Embeddings,
    TextEncoderIdentity,
    TextNeeds,
    TextStates,
    check_encoder,
    check_states,
)
from diffuse.text_backends.forms import JSON, SAFETENSORS, from_json, from_safetensors

_BUSY = (408, 429, 502, 503, 504)  # what a later attempt may find otherwise
_FIRST_WAIT, _MOST_WAIT = 0.5, 30.0  # seconds, which double from one attempt to the next
_BLOCK = 1 << 16
_MARGIN = 1 << 20  # bytes of an answer beside its numbers
_NUMBER_BYTES = {JSON: 30, SAFETENSORS: 4}  # of a number at most
_MOST_SHOWN = 200  # characters of a service's own message


class _Again(Exception):
    """Is raised for an attempt after which another may succeed; `wait` is what the service asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is for the address that the user gave."""

    def redirect_request(self, *_: Any) -> None:
        return None


class ApiTexts:
    """The embeddings that a service gives.

    Args:
        url: where prompts are sent to.
        token: of the service, sent as a bearer token.
        timeout: seconds for one answer.
        retries: attempts after the first, with growing waits.
        text_encoder_sha256: of the only text encoder that may make the embeddings.
        wait: waits for some seconds.
    """

    name = "api"

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 300.0,
        retries: int = 6,
        text_encoder_sha256: str | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.timeout, self.retries, self.sha256 = url, timeout, retries, text_encoder_sha256
        self._token, self._wait = token, wait
        self.encoder: TextEncoderIdentity | None = None  # of the latest answer
        self._note: str | None = None
        local = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
        proxies = [urllib.request.ProxyHandler({})] if local else []  # no proxy leads to loopback
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    @property
    def key(self) -> list[Any]:
        """All that determines the embeddings, and how they are asked for."""
        secret = hashlib.sha256((self._token or "").encode()).hexdigest()
        return [self.name, self.url, secret, self.timeout, self.retries, self.sha256]

    def check(self, prompts: Sequence[str], needs: TextNeeds) -> list[str]:
        """Returns what is to be said of the latest answer. The service is asked when the embeddings are needed."""
        return [] if self._note is None else [self._note]

    def encode(self, prompts: Sequence[str], needs: TextNeeds) -> list[TextStates]:
        """Returns the states `[T', D]` of each prompt, asked for in one request.

        Raises:
            ConfigError: the service refuses the request, or its answer is none or is of another model.
            RunError: it cannot be reached, or stays busy.
        """
        texts = list(dict.fromkeys(prompt.strip() for prompt in prompts))
        embeddings = self._ask(texts, needs)
        check_states(embeddings.states, len(texts), needs, self.url)
        if list(embeddings.prompts) != texts:
            raise ConfigError(f"{self.url}: answers with the embeddings of other prompts; is it diffuse serve-text?")
        self._note = check_encoder(embeddings.encoder, needs, self.url, self.sha256)
        self.encoder = embeddings.encoder
        by_text = dict(zip(texts, embeddings.states, strict=True))
        return [by_text[prompt.strip()] for prompt in prompts]

    def as_record(self) -> dict[str, Any]:
        """Returns the address and, after an answer, who made the embeddings."""
        return {"name": self.name, "url": self.url, "text_encoder": self.encoder and self.encoder.as_json()}

    def _ask(self, texts: Sequence[str], needs: TextNeeds) -> Embeddings:
        for attempt in range(self.retries + 1):
            try:
                return self._ask_once(texts, needs)
            except _Again as error:
                if attempt == self.retries:
                    times = "once" if attempt == 0 else f"{attempt + 1} times"
                    raise RunError(
                        f"{self.url}: {error}; asked {times}; start diffuse serve-text there, or choose another "
                        "text_backend"
                    ) from None
                own = min(_FIRST_WAIT * 2**attempt, _MOST_WAIT)
                self._wait(own if error.wait is None else min(max(error.wait, own), _MOST_WAIT))
        raise AssertionError

    def _ask_once(self, texts: Sequence[str], needs: TextNeeds) -> Embeddings:
        body = json.dumps({"prompts": list(texts), "max_sequence_length": needs.max_sequence_length}).encode()
        headers = {"Content-Type": JSON, "Accept": f"{SAFETENSORS}, {JSON};q=0.5"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url, body, headers)
        deadline = time.monotonic() + self.timeout
        numbers = len(texts) * needs.max_sequence_length * (needs.width + 1)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                kind = answer.headers.get_content_type()
                data = self._read(answer, numbers * _NUMBER_BYTES.get(kind, 30) + _MARGIN, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, deadline) from None
        except TimeoutError:
            raise _Again(f"does not answer within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Again(f"does not answer within {self.timeout:g} s") from None
            text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _Again(f"cannot be reached: {_shortened(text)}") from None
        if kind == SAFETENSORS:
            return from_safetensors(data, self.url)
        return from_json(data, texts, needs.max_sequence_length, self.url)

    def _read(self, answer: Any, most: int, deadline: float) -> bytes:
        """Reads an answer of at most `most` bytes before the deadline."""
        blocks, size = [], 0
        while block := answer.read1(_BLOCK):
            blocks.append(block)
            size += len(block)
            if size > most:
                raise ConfigError(f"{self.url}: answers with more than embeddings take; is it diffuse serve-text?")
            if time.monotonic() > deadline:
                raise TimeoutError
        length = answer.headers.get("Content-Length")
        if length is not None and length.isascii() and length.isdigit() and size < int(length):
            raise http.client.IncompleteRead(b"", int(length) - size)
        return b"".join(blocks)

    def _refused(self, error: urllib.error.HTTPError, deadline: float) -> Exception:
        """Returns the exception for an answer with a status of an error."""
        try:
            said = self._read(error, _MARGIN, deadline)
            text = json.loads(said)["error"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError, http.client.HTTPException):
            text = ""
        reason = f"answers {error.code}" + (f": {_shortened(str(text))}" if text else f" {_shortened(error.reason)}")
        if error.code in _BUSY:
            after = error.headers.get("Retry-After", "")
            return _Again(reason, float(after) if after.isascii() and after.isdigit() and len(after) < 6 else None)
        if error.code in (401, 403):
            way = "another text_backend.token" if self._token else "text_backend.token or DIFFUSE_TEXT_TOKEN"
            return ConfigError(f"{self.url}: {reason}; set {way}")
        if 300 <= error.code < 400:
            return ConfigError(f"{self.url}: {reason}: it is somewhere else; set text_backend.url to where it is")
        if error.code >= 500:
            return RunError(f"{self.url}: {reason}; see the messages of the service there")
        return ConfigError(f"{self.url}: {reason}; is it a service of text embeddings, such as diffuse serve-text?")


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."
