"""Origins of published tensors: where they are in a single file, and how they lie there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shapes of a file's tensors by their keys."""


@dataclass(frozen=True)
class Origin:
    """One tensor of a component, as a single file holds it."""

    key: str
    third: int | None = None
    """Which third of the rows it is, where query, key and value lie in one tensor."""
    drop_axes: bool = False
    """True for a 1 x 1 convolution `[O, I, 1, 1]` that is published as a linear layer `[O, I]`."""
    transposed: bool = False
    """True for a matrix `[I, O]` that is published as `[O, I]`."""

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the published shape of a tensor that is `stored` with this shape."""
        if self.third is not None:
            stored = (stored[0] // 3, *stored[1:])
        if self.drop_axes:
            stored = stored[:2]
        return stored[::-1] if self.transposed else stored


Origins: TypeAlias = dict[str, Origin]
"""Published key -> origin, of one component."""


@dataclass(frozen=True)
class Description:
    """The models in a single file."""

    index: dict[str, Any]
    """As `model_index.json` has it."""
    configs: dict[str, dict[str, Any]]
    """Component -> its configuration, as `config.json` has it; the scheduler's too."""
    origins: dict[str, Origins]
    """Component -> where its tensors are."""
    notes: list[str] = field(default_factory=list)
    """A line on each thing that was decided and could be otherwise."""
