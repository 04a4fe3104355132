"""The values of samplers' options: what is refused, and with what advice."""

from __future__ import annotations

from typing import Any

import pytest

from diffuse.errors import ConfigError
from diffuse.schedulers.options import check_options


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"shift": 0}, "shift=0: should be a number above 0"),
        ({"disable_corrector": [-1]}, "should be a list of whole numbers from 0"),
        ({"beta_schedule": "linaer"}, "one of linear, scaled_linear, squaredcos_cap_v2; did you mean linear?"),
        ({"solver_type": "heun"}, "should be one of bh1, bh2"),
    ],
)
def test_a_wrong_value_is_refused_with_what_it_can_be(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice.replace("?", r"\?")):
        check_options(options, {"solver_type": ("bh1", "bh2")})


def test_null_and_unknown_names_pass() -> None:
    check_options({"eta": None, "solver_type": "anything", "name": 3})
