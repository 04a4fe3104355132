"""The words of a user for what OmegaConf says of a `${...}` that leads nowhere."""

from __future__ import annotations

import re


def explain_interpolation(message: str) -> str:
    """Returns the first line of what OmegaConf says of a `${...}`, in the words of a user."""
    line = message.strip().splitlines()[0].rstrip(". ")
    if match := re.search(r"Interpolation key '(.*)' not found", line):
        return f"${{{match[1]}}} is no field; in a text that has it, write \\${{{match[1]}}}"
    if match := re.search(r"Unsupported interpolation type (\S+)", line):
        return f"${{{match[1]}:...}} is no resolver; the one of the environment is ${{oc.env:NAME}}"
    if match := re.search(r"Environment variable '(.*)' not found", line):
        return f"the environment has no {match[1]}; set it, or write ${{oc.env:{match[1]},VALUE}}"
    if "Recursive interpolation detected" in line:
        return "refers to itself; give it a value"
    return line
