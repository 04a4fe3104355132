"""A source of weights, as a configuration names it: a folder, a file or a hub repository, and what is needed of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.layout import PICKLES, SINGLE
from diffuse.checkpoints.single_file import SingleFile

LocalCheckpoint: TypeAlias = CheckpointFolder | SingleFile
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/((?:[^/\\]+/)*[^/\\]+)")


@dataclass(frozen=True)
class Source:
    """A folder, a file or a hub repository, and what is needed of it.

    Args:
        location: a folder or file, or a repository `OWNER/NAME`, or a file in one, `OWNER/NAME/FILE`.
        revision: a commit, tag or branch; it matters to repositories only.
        variant: the published variant of the weights, such as `fp16`.
        components: the folders needed; None for all that `model_index.json` names.
        setting: what the source's fields begin with in the configuration, for messages.
        single: whether `components` is one component, which may be all that the source has.
        fetch_variant: the variant that is fetched, if it is published and smaller, where `variant` is None and neither
            is here.
    """

    location: str
    revision: str | None = None
    variant: str | None = None
    components: tuple[str, ...] | None = None
    setting: str = "model"
    single: bool = False
    fetch_variant: str | None = None

    @property
    def choices(self) -> tuple[Source, ...]:
        """The source as it is, and where no variant is asked for, in the variant that is rather fetched."""
        if self.variant is not None or self.fetch_variant is None or self.hub_file is not None:
            return (self,)
        return self, replace(self, variant=self.fetch_variant)

    @property
    def repository(self) -> str:
        """Is the name of the repository, `OWNER/NAME`, for a source on the hub."""
        match = _HUB_FILE.fullmatch(self.location)
        return match[1] if match else self.location

    @property
    def hub_file(self) -> str | None:
        """Is the path of the file within the repository, for a source that is one file of it."""
        match = _HUB_FILE.fullmatch(self.location)
        return match[2] if match and Path(match[2]).suffix in (*SINGLE, *PICKLES) else None

    def checkpoint(self, folder: Path, commit: str | None = None, *, at_root: bool = False) -> LocalCheckpoint:
        """Returns the source's checkpoint, whose files are in `folder`; `commit` is None for a local folder."""
        component = self.components[0] if self.single and self.components else None
        if self.hub_file is not None:
            return SingleFile(folder / self.hub_file, self.location, commit, self.setting, component)
        return CheckpointFolder(folder, self.location, commit, self.variant, self.setting, component, at_root)
