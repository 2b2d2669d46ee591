"""What the groups of the command line are built of: the parser, a command with its handler, the arguments that many share."""

import argparse
import difflib
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pretrain.errors import ConfigError

Arguments = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """argparse with its mistakes told as the rest of the program tells them, and no abbreviated options."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = nearest(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        raise ConfigError(f"{message}{hint}\nsee: {self.prog} --help")


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint at the known word that was probably meant; empty where none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def add(commands: Any, name: str, summary: str, handler: str) -> argparse.ArgumentParser:
    """A command; `handler` names its function in launch.commands (or another file of launch), imported when it runs."""
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(handler=lazy(handler), parser=parser)
    return parser


def lazy(name: str) -> Callable[[Arguments], int | None]:
    """The function of that name, whose file is imported when it is called."""

    def handler(arguments: Arguments) -> int | None:
        module, _, function = name.rpartition(".")
        return getattr(importlib.import_module(f"launch.{module or 'commands'}"), function)(arguments)

    return handler


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config and `--set`."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a shipped config by name")
    add_overrides(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """A run that exists."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/quickstart")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the config, such as train.steps=200; lists by position (samples.prompts.0=...); repeatable",
    )


def natural(text: str) -> int:
    """A whole number from 0 on, as the type of an option."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number above 0, as the type of an option."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return value
