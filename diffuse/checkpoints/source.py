"""A source of weights, as a configuration names it: a folder or a hub repository, and what is needed of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from diffuse.checkpoints.folder import CheckpointFolder


@dataclass(frozen=True)
class Source:
    """A folder or a hub repository, and what is needed of it.

    Args:
        location: a folder, or a repository `OWNER/NAME`.
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
        if self.variant is not None or self.fetch_variant is None:
            return (self,)
        return self, replace(self, variant=self.fetch_variant)

    def checkpoint(self, folder: Path, commit: str | None = None, *, at_root: bool = False) -> CheckpointFolder:
        """Returns the source's checkpoint, whose files are in `folder`; `commit` is None for a local folder."""
        component = self.components[0] if self.single and self.components else None
        return CheckpointFolder(folder, self.location, commit, self.variant, self.setting, component, at_root)
