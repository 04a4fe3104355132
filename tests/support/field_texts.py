"""Writes the texts about request fields that are generated from `diffuse/schema.py`: a part of `diffuse --help`, which
stands in a file of its own so that help imports nothing, a part of `conf/config.yaml`, and the page
`diffuse/docs/fields.md`.

python tests/support/field_texts.py # after a change of the fields; tests/config/test_fields.py compares them
"""

from __future__ import annotations

import textwrap
from dataclasses import MISSING
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

import diffuse
from diffuse.config.checks import bounds
from diffuse.config.groups import CONFIG_NAME, conf_dir, load_group
from diffuse.run.open import load_family
from diffuse.schema import REQUEST_FIELDS, RequestField

PACKAGE = Path(diffuse.__file__).parent
BEGIN = "# Request fields: from diffuse/schema.py, by tests/support/field_texts.py.\n"
END = "# End of the request fields.\n"
NAMES_WIDTH = 30
WIDTH = 118

HELP = '''"""The request fields in `diffuse --help`. Written by tests/support/field_texts.py from diffuse/schema.py."""

FIELDS = """\\
{}
"""
'''
PAGE = """\
# Fields of a request

Written by `tests/support/field_texts.py` from `diffuse/schema.py`, where each field stands once.

A field is set on the command line as `NAME=VALUE` and in Python as an argument of its name. What is not given takes the
model's default, from `request_defaults` in `conf/model/`, and where that has none the default of this table. A family
that does not know a field refuses it by name.

| field | value | default | families | |
|---|---|---|---|---|
{}
"""


def help_fields() -> str:
    """Returns an entry for each field; neighbours with one text share it."""
    lines = []
    for text, group in groupby(REQUEST_FIELDS.values(), key=lambda field: field.help):
        names = ", ".join(map(with_choices, group))
        first, *more = textwrap.wrap(text, WIDTH - NAMES_WIDTH)
        if len(names) <= NAMES_WIDTH:
            lines.append(f"{names:<{NAMES_WIDTH}}  {first}")
        else:
            lines += [names, f"{'':{NAMES_WIDTH}}  {first}"]
        lines += [f"{'':{NAMES_WIDTH}}  {line}" for line in more]
    return "\n".join(f"  {line}" for line in lines)


def with_choices(field: RequestField) -> str:
    return f"{field.name}={'|'.join(field.choices)}" if field.choices else field.name


def page() -> str:
    """Returns the reference page."""
    classes = {model._target_: load_family(model._target_) for model in load_group("model").values()}
    families = {
        known.__name__: known.request_fields for known in sorted(classes.values(), key=lambda each: each.__name__)
    }
    rows = [
        f"| `{field.name}` | {value(field)} | {default(field)} | {known_by(field, families)} | {escaped(field.help)} |"
        for field in REQUEST_FIELDS.values()
    ]
    return PAGE.format("\n".join(rows))


def value(field: RequestField) -> str:
    kinds = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    lists = {int: "list of whole numbers", float: "list of numbers"}
    if field.choices:
        return ", ".join(f"`{choice}`" for choice in field.choices)
    kind = "file" if field.is_file else lists[field.element] if field.type is tuple else kinds[field.type]
    return f"{kind} {bounds(field)}".rstrip() if field.name != "seed" else "whole number of 0 or more"


def default(field: RequestField) -> str:
    if field.name == "seed":
        return "drawn"
    if field.config_default is not None:
        return f"`{str(field.config_default).lower()}`"
    if field.default is MISSING:
        return "the model's"
    shown: Any = field.default.name if isinstance(field.default, Enum) else field.default
    return "" if shown is None else f"`{shown}`"


def known_by(field: RequestField, families: dict[str, frozenset[str]]) -> str:
    if field.default is MISSING:
        return "all"
    knowing = [name for name, known in families.items() if field.name in known]
    if not knowing:
        return "a model with its refiner"
    return "all" if len(knowing) == len(families) else ", ".join(knowing)


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main_file(text: str) -> str:
    """Returns `conf/config.yaml`, which is `text`, with its part on request fields as the schema has them."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [
        f"{field.name}: {yaml.safe_dump(field.config_default).splitlines()[0]} # {field.help}\n"
        for field in REQUEST_FIELDS.values()
    ]
    return before + BEGIN + "".join(lines) + END + after


def texts() -> dict[Path, str]:
    """Returns the content of each generated file."""
    main = conf_dir() / f"{CONFIG_NAME}.yaml"
    return {
        PACKAGE / "cli" / "help_fields.py": HELP.format(help_fields()),
        PACKAGE / "docs" / "fields.md": page(),
        main: main_file(main.read_text(encoding="utf-8")),
    }


def main() -> None:
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
