"""Writes the text of `diffuse COMMAND --help`. Nothing is imported for it, so that it is there at once."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from diffuse.cli.hydra_help import OPTIONS
from diffuse.service.settings import ServiceSettings

_OF_HYDRA = {", ".join(names): says for names, says in OPTIONS.items()}
_OWN_FILES = ("-cd, --config-dir", "-cn, --config-name")  # of Hydra's options, those of every command
_SWEEPS = {"-m, --multirun": _OF_HYDRA["-m, --multirun"]}
_YES = "--yes, -y"
_FETCHES = {_YES: "fetch weights that are not here without asking"}
_EVERYWHERE = {
    **{names: _OF_HYDRA[names] for names in _OWN_FILES},
    "--help, -h": "this text",
    "--version": "print the version",
}
_NAMES = 26  # characters of the column of names
_WIDTH = 118
_TRACKING = "OVERRIDES are those of tracking, such as tracking.uri=SERVER."


@dataclass(frozen=True)
class CommandHelp:
    """Help on a command: how it is typed, what it does, one to try, its own options, and what overrides it takes."""

    usage: str
    does: str
    example: str
    options: dict[str, str] = field(default_factory=dict)
    overrides: str = "diffuse --help lists the fields and groups that OVERRIDES set."


_SERVICE = {  # with the default behind each
    "host": "the address that it listens on",
    "port": "0 is a free one",
    "max_body": "bytes of a request, at most",
    "max_prompts": "of a request, at most",
    "max_prompt_length": "characters of a prompt, at most",
    "max_queue": "prompts that wait, at most",
    "max_connections": "clients at once, at most",
    "batch_size": "prompts that are computed together; with more than 1 the bits are others",
    "timeout": "seconds for a client to send its request, and to take each part of the answer",
}

_COMMANDS = {
    "generate": CommandHelp(
        "diffuse [generate] [OVERRIDES]",
        "Makes what is configured: a picture, a film, or with -m a sweep. diffuse --help lists the fields.",
        'diffuse prompt="a panda face on a pink background" seed=7 num_images=4',
        {
            **{names: says for names, says in _OF_HYDRA.items() if names not in _OWN_FILES},
            "--hydra-help": "what of Hydra's own options and settings works here",
            "-sc, --shell-completion": f"first and alone: {_OF_HYDRA['-sc, --shell-completion']}",
            "--dry-run": "say what would be made, and of a sweep what is there already; nothing is made",
            _YES: "without asking: fetch weights that are not here; in a sweep, make more than 10,000 jobs",
            "--junit FILE": "with experiment=smoke: the results for a continuous-integration server",
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
            _YES: "without asking: fetch a model's settings from the hub; plan more than 10,000 jobs",
        },
    ),
    "compare": CommandHelp(
        "diffuse compare RUN... [OVERRIDES]",
        "Puts runs side by side: one page, a table, plots, contact sheets. RUN is a folder, a file, the id of a run, a "
        "sweep or an experiment; several may be named.",
        "diffuse compare outputs/sweeps/SWEEP --x num_inference_steps --y seed",
        {
            "--out DIR": "where to; else a folder's own report/, or of several outputs/compare/DATE",
            "--x, --y, --z FIELD": "what lies on the columns, the rows and the sheets, of what varies",
            "--reference FIELD=VALUE": "what quality is measured against, also a file or a run; else the most steps",
            "--no-sheets": "leave the contact sheets out",
        },
        f"{_TRACKING} They say where ids are looked up.",
    ),
    "convert": CommandHelp(
        "diffuse convert SRC DST [OVERRIDES]",
        "Writes a checkpoint as a folder, or as one file DST.safetensors. SRC is a folder, a file (.safetensors, "
        ".ckpt) or OWNER/NAME.",
        "diffuse convert model.ckpt model.safetensors --precision float16",
        {
            "--precision DTYPE": "float16, bfloat16 or float32; as stored without it",
            "--shard-size 5GB": "of the files of a folder, at most; 10GB without it",
            **_FETCHES,
        },
        "OVERRIDES are those of model, such as model.vae.source=FILE, and scheduler.prediction_type.",
    ),
    "reproduce": CommandHelp(
        "diffuse reproduce RUN_ID|FILE [OVERRIDES]",
        "Makes the pictures of a run or file again from their record, and says whether they are the same; exit status "
        "1 if not.",
        "diffuse reproduce picture.png",
        _FETCHES,
        "OVERRIDES say where to (output), on what (hardware, memory_profile), how it is kept (tracking), and where "
        "files are now: model.source, input_image, lora.0.source and their like.",
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
        overrides=_TRACKING,
    ),
    "sync": CommandHelp(
        "diffuse sync [OVERRIDES]",
        "Delivers the runs that wait because the store was away, or because their process was killed.",
        "diffuse sync tracking.uri=http://localhost:5000",
        overrides=_TRACKING,
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
            **{
                f"--{name.replace('_', '-')}": f"{says}; {getattr(ServiceSettings, name)}"
                for name, says in _SERVICE.items()
            },
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
    return "\n".join([*lines, "", f"  {about.example}", "", *textwrap.wrap(about.overrides, _WIDTH)])
