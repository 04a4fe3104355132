"""Random changes of files and of JSON values, each drawn from a generator of its own."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from random import Random
from typing import Any

_NUMBERS = (0, 1, 2, 3, 7, 8, 64, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 8, 64, 1000, 10**6, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "0", "1", "null", "nan", "../x", "/", "~", "é\u2028", "\0"),
    *("\ud800", "a" * 5000, [], {}, [0], [1, 2], [None], ["x"], [[1]], {"x": 1}, {"": None}, "${seed}", "${oc.env:X}"),
)


def mutated(content: bytes, random: Random, others: list[bytes]) -> bytes:
    """Returns `content` with a few random changes; `others` are files to take pieces from."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        _change(data, random, others)
    return bytes(data)


def _change(data: bytearray, random: Random, others: list[bytes]) -> None:
    at = random.randrange(len(data) + 1)
    near = min(at, 64) if random.random() < 0.3 else at  # headers are short, and decide most
    length = random.choice((1, 2, 4, 8, 32, 200))
    kind = random.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1 and near < len(data):
        data[near] = random.randrange(256)
    elif kind == 2:
        number = random.choice(_NUMBERS)
        order = random.choice("<>")
        packed = struct.pack(f"{order}I", number) if random.random() < 0.5 else struct.pack(f"{order}H", number & 65535)
        data[near : near + len(packed)] = packed
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at : at + length]
    elif kind == 5:
        data[at:at] = data[at : at + length] or bytes(length)
    elif kind == 6:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        data[at : at + length] = other[start : start + length]
    else:
        data[near : near + length] = random.randbytes(length)


def with_checksums(content: bytes) -> bytes:
    """Returns a PNG whose chunks have their right checksums again, so that more than the first check is tried."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def mutated_json(value: Any, random: Random) -> Any:
    """Returns a JSON value with one to three places changed, removed, added or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return random.choice(_ODD)
        # Half of the time near the root, where there are few places, and each means much.
        parent, key = random.choice(places[: max(4, len(places) // 20)] if random.random() < 0.5 else places)
        kind = random.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[random.choice(("x", "_class_name", "", "type", key + "_"))] = parent[key]
        elif kind == 2:
            other, name = random.choice(places)
            parent[key] = copy.deepcopy(other[name]) if _is_in(other, name) else None
        elif kind == 3:
            parent[key] = [parent[key]] if random.random() < 0.5 else {"x": parent[key]}
        else:
            parent[key] = copy.deepcopy(random.choice(_ODD))
    return value


def _is_in(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key < len(parent)


def _places(value: Any) -> Any:
    """Yields each place in a JSON value: what holds it, and its key or index."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    entries = list(entries)
    for key, _ in entries:
        yield value, key
    for _, child in entries:
        yield from _places(child)


def json_bytes(value: Any, random: Random) -> bytes:
    """Returns JSON text, now and then in an odd encoding, or nested more deeply than it can be read."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.9)
    kind = random.randrange(40)
    if kind == 0:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
    if kind == 1:
        return text.encode("utf-16", "surrogatepass")
    if kind == 2:
        return b"[" * 100_000
    if kind == 3:
        return text.replace("1", "1" + "0" * 5000, 1).encode("utf-8", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")
