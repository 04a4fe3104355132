"""The arguments of `diffuse serve-text`, and what it grants its clients."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches

from diffuse.errors import ConfigError


@dataclass(frozen=True)
class ServiceSettings:
    """The address of the service, and its limits."""

    host: str = "127.0.0.1"
    port: int = 8765  # 0: a free one
    max_body: int = 1 << 20  # bytes of a request
    max_prompts: int = 8  # of a request
    max_prompt_length: int = 4000  # characters of a prompt
    max_queue: int = 64  # prompts that wait
    max_connections: int = 128
    batch_size: int = 1  # prompts that are computed together; 1 gives each the bits of a local film
    timeout: int = 30  # seconds that a client has to send its request, and to take each part of the answer

    @property
    def is_local(self) -> bool:
        """Tells whether only this machine reaches the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


_NUMBERS = {
    f"--{field.name.replace('_', '-')}": field.name for field in fields(ServiceSettings) if field.name != "host"
}
OPTIONS = ("--host", *_NUMBERS)
_MOST = 2**31 - 1
_MOST_PORT = 65535


def parse_service_arguments(arguments: Sequence[str]) -> tuple[ServiceSettings, list[str]]:
    """Parses the words after `diffuse serve-text`. Returns the settings, and the overrides.

    Raises:
        ConfigError: an option does not exist, has no value or a wrong one.
    """
    host, overrides = ServiceSettings.host, []
    numbers: dict[str, int] = {}
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        if option not in OPTIONS:
            near = get_close_matches(option, OPTIONS, 1)
            raise ConfigError(f"{argument}: there is no such option{f'; did you mean {near[0]}?' if near else ' here'}")
        value = value if equals else next(rest, "")
        if option == "--host":
            if not value or value.startswith("-"):
                raise ConfigError("--host: needs a value: --host ADDRESS")
            host = value
        else:
            numbers[_NUMBERS[option]] = _number(option, value)
    return ServiceSettings(host, **numbers), overrides


def _number(option: str, value: str) -> int:
    least, most = (0, _MOST_PORT) if option == "--port" else (1, _MOST)
    if not (value.isascii() and value.isdigit() and len(value) < 11 and least <= int(value) <= most):
        raise ConfigError(f"{option} {value}: should be a whole number from {least} to {most}")
    return int(value)
