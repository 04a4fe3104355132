"""`diffuse encode`: writes the embeddings of a request's prompts into a file for `text_backend=precomputed`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from diffuse.config.request import RequestDraft
from diffuse.errors import ConfigError
from diffuse.paths import user_path
from diffuse.run.text_encoder import open_text_encoder
from diffuse.terminal import counted, say
from diffuse.text_backends.embeddings import Embeddings
from diffuse.text_backends.forms import write_embeddings_file

_SUFFIX = ".safetensors"


def embeddings_path(out: str | None) -> Path:
    """Returns the path of the file to write.

    Raises:
        ConfigError: none is named, it is there already, or its folder is not.
    """
    if out is None:
        raise ConfigError("diffuse encode: where to? add --out FILE.safetensors")
    path = user_path(out, "--out")
    if path.suffix != _SUFFIX:
        raise ConfigError(f"--out {out}: should be a file {_SUFFIX}")
    if os.path.lexists(path):
        raise ConfigError(f"{path}: exists already and is not overwritten; name another, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: there is no such folder; make it first")
    return path


def encode_prompts(cfg: DictConfig, drafts: Sequence[RequestDraft], path: Path) -> Path:
    """Writes the embeddings of all prompts of `drafts`, those of `cfg`, and of their negative prompts. Returns `path`.

    Raises:
        DiffuseError: the text encoder cannot be opened, or the file cannot be written.
    """
    encoder = open_text_encoder(cfg)
    texts = [text for draft in drafts for text in (draft.prompt, draft.fields["negative_prompt"] or "")]
    prompts = list(dict.fromkeys(text.strip() for text in texts))
    states = [encoder.encode([prompt])[0] for prompt in prompts]  # alone, so that a film's bits are those of here
    for prompt, each in zip(prompts, states, strict=True):
        if each.cut:
            say(f"warning: {prompt[:40]!r} is longer than {encoder.tokens} tokens; cut off: {each.cut!r}")
    write_embeddings_file(Embeddings(prompts, states, encoder.tokens, encoder.identity()), path)
    say(f"{counted(len(prompts), 'prompt')} encoded")
    return path
