"""Writes the text of `diffuse --hydra-help`: what of Hydra's own works here, and nothing else."""

from __future__ import annotations

OPTIONS = {
    ("-m", "--multirun"): "a sweep over lists and ranges of values",
    ("-c", "--cfg"): "job, hydra or all: print that configuration, and make nothing",
    ("--resolve",): "with --cfg: interpolations are replaced by what they stand for",
    ("-p", "--package"): "with --cfg: a part alone, such as model",
    ("-cd", "--config-dir"): "a folder of your own YAML files, beside the package's",
    ("-cn", "--config-name"): "the configuration to begin with, in place of config",
    ("-sc", "--shell-completion"): "install=SHELL or uninstall=SHELL, of bash, zsh and fish",
    ("--hydra-help",): "this text",
}
_TEXT = """\
What of Hydra {version} works here; diffuse --help lists the rest.

Options:
{options}

Settings:
  hydra.mode=MULTIRUN             in an experiment: it is a sweep by itself
  hydra.searchpath=[DIR,DIR]      folders of your own YAML files; also pkg://PACKAGE
  hydra.sweeper.params            in an experiment: the values to sweep over, by field
  hydra.sweeper.zip=[FIELD,FIELD] fields of a sweep whose values go together
  hydra.callbacks                 your own classes, called as runs begin and end
  hydra/launcher={launchers}
  hydra/sweeper={sweepers}

diffuse --cfg hydra prints all settings. For completion in this shell:

  eval "$(diffuse -sc install=bash)"        bash, and zsh after: autoload -U bashcompinit && bashcompinit
  diffuse -sc install=fish | source         fish
"""


def hydra_help_text() -> str:
    """Returns the options and settings, with the launchers and sweepers that there are."""
    import hydra

    from diffuse.config.groups import group_options

    lines = [f"  {', '.join(names):<30}  {says}" for names, says in OPTIONS.items()]
    launchers = sorted({"basic", *group_options("hydra/launcher")})
    return _TEXT.format(
        version=hydra.__version__,
        options="\n".join(lines),
        launchers="|".join(launchers),
        sweepers="|".join(group_options("hydra/sweeper")),
    ).rstrip("\n")
