"""Words on the command line that are no command and no option: says which was meant. Nothing is imported for it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from diffuse.cli.options import COMPLETION, FLAGS, HELP, VERSION, command_options
from diffuse.errors import ConfigError

# Other names of what is here, and what is written for them.
_OTHER_NAMES = {
    "run": "diffuse [OVERRIDES]",
    "txt2img": "diffuse prompt=TEXT",
    "img2img": "diffuse input_image=FILE",
    "multirun": "diffuse -m",
    "sweep": "diffuse -m",
    "help": "diffuse --help",
    "version": "diffuse --version",
}
# Hydra's options that do not hold here, and what does.
_REPLACED = {
    ("--config-path", "-cp"): "--config-dir DIR adds a folder of your own files to the package's",
    ("--run", "-r"): "a command without -m is a single run",
    ("--info", "-i"): "--cfg job, --cfg hydra and --cfg all print the configuration",
    ("--experimental-rerun",): "diffuse reproduce makes a run again",
}


def check_words(arguments: Sequence[str], commands: Sequence[str]) -> None:
    """Checks that every argument is an option or an override, where no command stands first.

    Raises:
        ConfigError: one is a word by itself: a command that does not exist or comes late, or a prompt.
    """
    before = ""
    for word in arguments:
        # After any other option a word may be its value, which the command reads itself.
        is_value, before = before.startswith("-") and before not in FLAGS, word
        if is_value or "=" in word or word.startswith(("-", "~")) or not word.strip():
            continue
        if word in commands:
            raise ConfigError(f"{word}: is a command, which goes first: diffuse {word} ...")
        if len(word.split()) > 1:
            raise ConfigError(f'{word}: should be NAME=VALUE; a prompt is written as prompt="{word}"')
        bare = [each for each in arguments if each.strip() and "=" not in each and not each.startswith(("-", "~"))]
        raise ConfigError(
            f"{word}: there is no such command, and a setting is written NAME=VALUE; "
            f"{_near_command(word, commands, ' '.join(bare))}"
        )


def _near_command(word: str, commands: Sequence[str], text: str) -> str:
    typed = word.casefold()
    known = {name: f"diffuse {name}" for name in commands} | _OTHER_NAMES
    near = get_close_matches(typed, known, 1, 0.6) or [name for name in commands if typed.startswith(name)]
    if near:
        return f"did you mean {known[near[0]]}?"
    if " " in text and not {*"./\\"} & {*text}:  # what a shell makes of a prompt without quotes
        return f"a prompt is written as prompt='{text}'"
    return f"the commands are {', '.join(commands)}"


def wrong_option(argument: str) -> ConfigError:
    """Returns the error for an option that `generate` does not take as it is written, or where it stands."""
    name, equals, _ = argument.partition("=")
    if name in COMPLETION:
        return ConfigError(f"{argument}: goes first and alone: diffuse {name} install=SHELL")
    if equals and name in (*FLAGS, *HELP, VERSION):
        return ConfigError(f"{argument}: takes no value; write {name} alone, or leave it out")
    options = command_options("generate")
    if name in options:
        return ConfigError(f"{argument}: is given twice; leave one of them out")
    return ConfigError(f"{argument}: there is no such option{_near_option(name, options)}")


def _near_option(name: str, options: Sequence[str]) -> str:
    """Returns a clause that says what to write in place of an option that does not exist."""
    for names, hint in _REPLACED.items():
        if name in names:
            return f"; {hint}"
    near = get_close_matches(name, [option for option in options if option.startswith("--")], 1, 0.7)
    return f"; did you mean {near[0]}?" if near else "; diffuse generate --help lists them"
