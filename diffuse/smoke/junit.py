"""Results as JUnit XML, which continuous-integration servers read."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from diffuse.errors import RunError

SUITE = "diffuse.smoke"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0


@dataclass(frozen=True)
class JUnitTest:
    """A test and its result: it failed where there are `faults`."""

    name: str
    seconds: float
    faults: Sequence[str]
    output: str


def write_junit(path: Path, tests: Sequence[JUnitTest]) -> None:
    """Writes the file whole; one that is there is replaced.

    Raises:
        RunError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        ElementTree.ElementTree(_element(tests)).write(temporary, encoding="utf-8", xml_declaration=True)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(f"--junit {path}: cannot be written: {error.strerror or error}") from error


def _element(tests: Sequence[JUnitTest]) -> ElementTree.Element:
    counts = {
        "name": SUITE,
        "tests": str(len(tests)),
        "failures": str(sum(bool(test.faults) for test in tests)),
        "errors": "0",
        "time": f"{sum(test.seconds for test in tests):.3f}",
    }
    suites = ElementTree.Element("testsuites", counts)
    stamp = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    suite = ElementTree.SubElement(suites, "testsuite", {**counts, "skipped": "0", "timestamp": stamp})
    for test in tests:
        attributes = {"classname": SUITE, "name": _text(test.name), "time": f"{test.seconds:.3f}"}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        if test.faults:
            failure = ElementTree.SubElement(case, "failure", {"message": _text("; ".join(test.faults)), "type": "off"})
            failure.text = _text("\n".join(test.faults))
        elif test.output:
            ElementTree.SubElement(case, "system-out").text = _text(test.output)
    return suites


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
