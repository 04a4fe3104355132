"""Writes the text of `diffuse COMMAND --help`. Nothing is imported for it, so that it is there at once."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

_YES = "--yes, -y"
_FETCHES = {_YES: "fetch weights that are not here without asking"}
_SWEEPS = {"-m, --multirun": "a sweep over lists and ranges of values"}
_NAMES = 26  # characters of the column of names
_WIDTH = 118
_EVERYWHERE = {
    "--config-dir, -cd DIR": "a folder of your own YAML files, beside the package's",
    "--config-name, -cn NAME": "a configuration of your own to begin with",
    "--help, -h": "this text",
    "--version": "the version",
}


@dataclass(frozen=True)
class CommandHelp:
    """Help on a command: how it is typed, what it does, its own options, and one to try."""

    usage: str
    does: str
    example: str
    options: dict[str, str] = field(default_factory=dict)


_COMMANDS = {
    "generate": CommandHelp(
        "diffuse [generate] [OVERRIDES]",
        "Makes what is configured: a picture, a film, or with -m a sweep. diffuse --help lists the fields.",
        'diffuse prompt="a panda face on a pink background" seed=7 num_images=4',
        {
            **_SWEEPS,
            "--dry-run": "say what would be made, and of a sweep what is there already; nothing is made",
            **_FETCHES,
            "--junit FILE": "with experiment=smoke: the results for a continuous-integration server",
            "--cfg, -c job": "print the configuration and make nothing; hydra and all have Hydra's part",
            "--package, -p PART": "with --cfg: a part alone, such as model",
            "--resolve": "with --cfg: interpolations are replaced by what they stand for",
            "--hydra-help": "what of Hydra's own options and settings works here",
            "--shell-completion, -sc": "install=SHELL or uninstall=SHELL, of bash, zsh and fish",
        },
    ),
    "plan": CommandHelp(
        "diffuse plan [OVERRIDES]",
        "Says what a request or a sweep would take: memory, arithmetic, time, disk. It needs no weights.",
        'diffuse plan model=sdxl prompt="a lighthouse" --card "RTX 4090"',
        {
            "--card NAME": "as it would be on that card, which need not be here",
            "--json": "the same for programs",
            **_SWEEPS,
            **_FETCHES,
        },
    ),
    "compare": CommandHelp(
        "diffuse compare RUN... [OVERRIDES]",
        "Puts runs side by side: one page, a table, plots, contact sheets. RUN is a folder, a file, the id of a run, a "
        "sweep or an experiment; several may be named. Overrides such as tracking.uri=SERVER say where ids are from.",
        "diffuse compare outputs/sweeps/SWEEP --x num_inference_steps --y seed",
        {
            "--out DIR": "where to; a folder's own report/ where it is the only one",
            "--x, --y, --z FIELD": "what lies on the columns, the rows and the sheets, of what varies",
            "--reference FIELD=VALUE": "what quality is measured against, also a file or a run; else the most steps",
            "--no-sheets": "leave the contact sheets out",
        },
    ),
    "convert": CommandHelp(
        "diffuse convert SRC DST [OVERRIDES]",
        "Writes a checkpoint as a folder, or as one file DST.safetensors. SRC is a folder, a file (.safetensors, "
        ".ckpt) or OWNER/NAME; model.unet.source=FILE and its like may follow.",
        "diffuse convert model.ckpt model.safetensors --precision float16",
        {
            "--precision DTYPE": "float16, bfloat16 or float32; as stored without it",
            "--shard-size 5GB": "of the files of a folder, at most; 10GB without it",
            **_FETCHES,
        },
    ),
    "reproduce": CommandHelp(
        "diffuse reproduce RUN_ID|FILE [OVERRIDES]",
        "Makes the pictures of a run or file again from their record, and says whether they are the same; exit status "
        "1 if not.",
        "diffuse reproduce picture.png",
        _FETCHES,
    ),
    "download": CommandHelp(
        "diffuse download [OVERRIDES]",
        "Fetches the files of a model, after saying how much that is.",
        "diffuse download model=sd21",
        {_YES: "without asking"},
    ),
    "doctor": CommandHelp(
        "diffuse doctor [OVERRIDES]",
        "Shows hardware, libraries, the profile that each model would get, and the tracking store.",
        "diffuse doctor --measure",
        {"--measure": "also how fast the device is, which plan then goes by"},
    ),
    "ui": CommandHelp(
        "diffuse ui [OVERRIDES]",
        "Opens the MLflow store on loopback and prints the link that shows the pictures. Ctrl-C ends it.",
        "diffuse ui",
    ),
    "sync": CommandHelp(
        "diffuse sync [OVERRIDES]",
        "Delivers the runs that wait because the store was away, or because their process was killed.",
        "diffuse sync tracking.uri=http://localhost:5000",
    ),
    "encode": CommandHelp(
        "diffuse encode [OVERRIDES] --out FILE",
        "Writes the embeddings of a film's prompts, for machines without room for the text encoder: "
        "text_backend=precomputed reads them.",
        'diffuse encode model=ltx2 prompt="a fox runs through snow" --out prompts.safetensors',
        {"--out FILE": "a .safetensors file that is not there yet", **_FETCHES},
    ),
    "serve-text": CommandHelp(
        "diffuse serve-text [OVERRIDES]",
        "Encodes prompts for other machines, which ask with text_backend=api. Beyond this machine the environment "
        "variable DIFFUSE_TEXT_TOKEN has the token that clients send.",
        "diffuse serve-text model=ltx2 --port 8765",
        {
            "--host, --port": "where it listens; without --host only this machine reaches it",
            "--max-body BYTES": "of a request",
            "--max-prompts N": "of a request",
            "--max-prompt-length N": "characters of a prompt",
            "--max-queue N": "prompts that wait",
            "--max-connections N": "clients at once",
            "--timeout SECONDS": "for a client to send its request, and to take each part of the answer",
            "--batch-size N": "prompts that are computed together; with more than 1 the bits are no longer those of 1",
            **_FETCHES,
        },
    ),
}


def command_help_text(command: str) -> str:
    """Returns how a command is typed, what it does and every option that it takes."""
    about = _COMMANDS[command]
    lines = [f"  {about.usage}", "", *textwrap.wrap(about.does, _WIDTH), ""]
    for names, text in (about.options | _EVERYWHERE).items():
        lines.append(f"  {names:<{_NAMES}}  {text}")
    return "\n".join(
        [*lines, "", f"  {about.example}", "", "diffuse --help lists the fields and groups that overrides set."]
    )
