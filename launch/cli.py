"""The `pretrain` command: arguments, one place where errors become messages and exit codes, nothing else.

`--help` is instant: a command's room is imported when the command runs. A user's mistake is one message on stderr, never a
traceback; what prints one is a fault of the program.

Exit codes: 0 done; 1 a check gave a bad verdict; 2 config or usage; 3 data; 4 checkpoint; 5 disk or permission; 70 a fault in a
rank; 75 preempted, checkpoint saved, start the same command again; 130 stopped by Ctrl-C
(parity by SIGTERM too, for it has nothing to save).
"""

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EEXIST, EISDIR, ELOOP, ENAMETOOLONG, ENOTDIR
from typing import Any, NoReturn

from pretrain.errors import ConfigError, Interrupted, PretrainError, StorageError
from pretrain.files import storage_error

Arguments = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    """argparse with its mistakes told as the rest of the program tells them, and no abbreviated options."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = _nearest(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        raise ConfigError(f"{message}{hint}\nsee: {self.prog} --help")


class _ShowVersion(argparse.Action):
    """Looks the installed version up only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib import metadata

        try:
            print(f"pretrain {metadata.version('pretrain')}")
        except metadata.PackageNotFoundError:
            print("pretrain from a checkout that is not installed")
        parser.exit()


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    # Threads of torch wait asleep. Where others use the cores too, spinning ones take them from each other: three
    # samples then took 63 s instead of 7. Read when torch is loaded, so it is set here; ranks inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def work() -> int | None:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        return arguments.handler(arguments)

    return exit_code_of(work)


def exit_code_of(work: Callable[[], int | None]) -> int:
    """Runs a command's work; what it raises becomes a message on stderr and an exit code."""
    try:
        return work() or 0
    except PretrainError as error:
        _tell(f"error: {error}" if not isinstance(error, Interrupted) else str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _tell("stopped by Ctrl-C")
        return Interrupted.exit_code
    except BrokenPipeError:
        # The reader of our output left (`| head`); a second failure at the interpreter's exit would be printed.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        told = storage_error(error) or _wrong_place(error)
        if told is None:
            raise
        _tell(f"error: {told}")
        return told.exit_code


def _wrong_place(error: OSError) -> StorageError | None:
    """A path that the user gave and that cannot be what it should be."""
    if error.filename is None or error.errno not in (EEXIST, EISDIR, ELOOP, ENAMETOOLONG, ENOTDIR):
        return None
    reason = str(error.strerror)
    return StorageError(f"{error.filename}: {reason[0].lower()}{reason[1:]}; choose another path")


def _tell(message: str) -> None:
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def _parse(argv: Sequence[str]) -> Arguments:
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = re.findall(r"--[\w-]+", arguments.parser.format_usage())
        hint = _nearest(unknown[0].split("=")[0], flags)
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="pretrain",
        description="Pretrain transformer language models, from a corpus to a trained model.",
        epilog="Start with `pretrain quickstart`. CONFIG is a YAML file or a shipped one by name (quickstart.yaml);\n"
        "RUN is a run's folder (runs/quickstart).",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_config_commands(commands)
    _add_run_commands(commands)
    _add_data_commands(commands)
    _add(commands, "doctor", "what this machine has, what is missing, and the fix", "doctor")
    return parser


def _add_config_commands(commands: Any) -> None:
    quickstart = _add(commands, "quickstart", "prepare, train, evaluate and report in one go", "quickstart")
    quickstart.add_argument(
        "config", nargs="?", default="quickstart.yaml", metavar="CONFIG", help="default: %(default)s"
    )
    _add_overrides(quickstart)
    _add_preparation(quickstart)
    _add_nproc(quickstart)

    prepare = _add(commands, "prepare", "corpus -> token shards", "prepare")
    _add_config(prepare)
    _add_preparation(prepare)

    tokenizer = commands.add_parser("tokenizer", help="train a tokenizer", description="Tokenizers.")
    train_tokenizer = _add(
        tokenizer.add_subparsers(metavar="COMMAND", required=True),
        "train",
        "train a byte-level BPE tokenizer on a config's corpus",
        "train_tokenizer",
    )
    _add_config(train_tokenizer)
    _add_preparation(train_tokenizer)
    train_tokenizer.add_argument("--out", default="tokenizer.json", metavar="FILE", help="default: %(default)s")

    train = _add(commands, "train", "train on this machine; continues a run that has a checkpoint", "train")
    _add_config(train)
    _add_nproc(train)
    _add_nodes(train)
    train.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="a field or section that a continued run may change, such as train.steps; repeatable",
    )
    _add_parity(commands)


def _add_parity(commands: Any) -> None:
    parity = _add(commands, "parity", "does a layout train the same model as one process?", "parity")
    parity.epilog = (
        "A LAYOUT is comma-separated: tp=2   pp=2,tp=2   dp=2,zero_stage=3,train.recompute=full\n"
        "Bare keys are layout's, dotted ones any field of the config. Exit code 1: one of them trains another model."
    )
    parity.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, or a shipped config by name")
    _add_overrides(parity)
    parity.add_argument("--layouts", nargs="+", default=[], metavar="LAYOUT", help="what is held against one process")
    parity.add_argument(
        "--random", type=_positive, metavar="N", help="in place of CONFIG: N random models under random layouts"
    )
    parity.add_argument("--seed", type=_natural, default=0, metavar="S", help="of --random; default: %(default)s")
    parity.add_argument("--steps", type=_positive, default=5, metavar="N", help="default: %(default)s")
    parity.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cpu: gloo; cuda: NCCL, untested; default: %(default)s"
    )
    parity.add_argument(
        "--timeout-s",
        type=_positive,
        default=600,
        metavar="N",
        help="of one layout; ranks that hang show their stacks; default: %(default)s",
    )


def _add_run_commands(commands: Any) -> None:
    evaluate = _add(commands, "evaluate", "validation loss of a run's last checkpoint", "evaluate")
    _add_run(evaluate)

    generate = _add(commands, "generate", "text from a run's last checkpoint", "generate")
    _add_run(generate)
    generate.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="repeatable; default: the config's samples.prompts",
    )
    generate.add_argument("--max-tokens", type=int, metavar="N", help="default: the config's samples.max_tokens")
    generate.add_argument("--temperature", type=float, metavar="T", help="0: greedy; default: the config's")
    generate.add_argument("--top-p", type=float, metavar="P", help="default: the config's samples.top_p")
    generate.add_argument(
        "--beam", type=int, metavar="N", help="beam size of a translation; 0: greedy; default: the config's"
    )
    generate.add_argument("--seed", type=int, metavar="N", help="of the sampling; default: the run's")

    report = _add(commands, "report", "one HTML page about a run", "report")
    _add_run(report)

    checkpoint = commands.add_parser(
        "checkpoint", help="list or verify checkpoints", description="Checkpoints of a run."
    )
    actions = checkpoint.add_subparsers(metavar="COMMAND", required=True)
    _add_run(_add(actions, "list", "the committed checkpoints of a run", "list_checkpoints"))
    _add_run(_add(actions, "verify", "hold every file of every checkpoint against its hash", "verify_checkpoints"))


def _add_data_commands(commands: Any) -> None:
    data = commands.add_parser("data", help="look into prepared data", description="What lies in prepared data.")
    actions = data.add_subparsers(metavar="COMMAND", required=True)
    inspect = _add(
        actions, "inspect", "counts, sources, lengths and random documents of prepared data", "data_commands.inspect"
    )
    inspect.add_argument(
        "paths", nargs="+", metavar="PATH", help="a data folder (data/standard_library), or token shards"
    )
    inspect.add_argument(
        "--samples", type=_natural, default=3, metavar="N", help="random documents of each source; default: %(default)s"
    )
    inspect.add_argument("--seed", type=_natural, default=0, metavar="S", help="of the choice; default: %(default)s")
    verify = _add(actions, "verify", "hold every block of prepared data against its checksum", "data_commands.verify")
    verify.add_argument("folder", metavar="FOLDER", help="a data folder, such as data/standard_library")
    mix = _add(actions, "mix", "what a config's blend of sources gives: samples, tokens, epochs", "order_commands.mix")
    _add_config(mix)
    trace = _add(actions, "trace", "which documents were in a step of a run", "order_commands.trace")
    _add_run(trace)
    trace.add_argument("--step", type=_positive, required=True, metavar="K", help="as the metrics count them, from 1")
    trace.add_argument(
        "--rows",
        type=_positive,
        default=8,
        metavar="N",
        help="samples of the step that are shown; default: %(default)s",
    )
    trace.add_argument(
        "--form",
        choices=("table", "text", "json"),
        default="table",
        help="text: with the documents' text; json: one line a sample, all of them; default: %(default)s",
    )
    _add_token_files(actions)


def _add_token_files(actions: Any) -> None:
    """What other projects prepared, and what they read."""
    taken = _add(
        actions, "import", "token files of Megatron or datatrove -> a data folder", "data_commands.import_files"
    )
    taken.add_argument("files", nargs="+", metavar="FILE", help="PREFIX of PREFIX.bin and PREFIX.idx, or a .ds file")
    taken.add_argument("--format", choices=("megatron", "datatrove"), required=True, help="what the files are")
    taken.add_argument("--tokenizer", required=True, metavar="FILE", help="the tokenizer.json that the ids are of")
    taken.add_argument("--out", required=True, metavar="FOLDER", help="the data folder that is made")
    taken.add_argument(
        "--tokens",
        choices=("copy", "link"),
        default="copy",
        help="link: they stay in Megatron's files, which are read in place; default: %(default)s",
    )
    taken.add_argument(
        "--document-end",
        choices=("present", "append"),
        default="present",
        help="whether each document ends with the end-of-text token, or gets one; default: %(default)s",
    )
    taken.add_argument(
        "--end-of-text",
        default="<|endoftext|>",
        metavar="TOKEN",
        help="the tokenizer's name of it; default: %(default)s",
    )
    taken.add_argument(
        "--validation", type=float, default=0.02, metavar="SHARE", help="of documents held out; default: %(default)s"
    )
    given = _add(
        actions, "export", "a data folder -> token files of Megatron or datatrove", "data_commands.export_files"
    )
    given.add_argument("folder", metavar="FOLDER", help="a data folder")
    given.add_argument("--format", choices=("megatron", "datatrove"), required=True, help="what is written")
    given.add_argument(
        "--out", required=True, metavar="FILE", help="PREFIX of PREFIX.bin and PREFIX.idx, or a .ds file"
    )
    given.add_argument("--split", choices=("train", "validation"), default="train", help="default: %(default)s")


def _add(commands: Any, name: str, summary: str, handler: str) -> argparse.ArgumentParser:
    """A command; `handler` names its function in launch.commands (or another file of launch), imported when it runs."""
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(handler=_lazy(handler), parser=parser)
    return parser


def _lazy(name: str) -> Callable[[Arguments], int | None]:
    def handler(arguments: Arguments) -> int | None:
        module, _, function = name.rpartition(".")
        return getattr(importlib.import_module(f"launch.{module or 'commands'}"), function)(arguments)

    return handler


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a shipped config by name")
    _add_overrides(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/quickstart")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the config, such as train.steps=200; lists by position (samples.prompts.0=...); repeatable",
    )


def _add_preparation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("ray", "local"),
        help="what runs the preparation; default: ray, or local where it is not installed",
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="processes of the preparation; default: the cores"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="a running Ray cluster (or ray://..., auto) that works; default: one is started",
    )


def _add_nproc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nproc", type=_positive, metavar="N", help="ranks on this machine; default: as many as the layout takes"
    )


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nnodes", type=_positive, default=1, metavar="N", help="machines of the run; default: 1")
    parser.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        help="where the machines meet: node 0's address, the same on all; the launcher of node 0 listens there, on that address "
        "alone and without authentication, so name a private network",
    )
    parser.add_argument(
        "--node-rank",
        type=_natural,
        metavar="K",
        help="number of this machine, from 0; default: the one that HOST names is 0, others are numbered as they arrive",
    )
    parser.add_argument(
        "--max-restarts",
        type=_natural,
        default=0,
        metavar="N",
        help="start the ranks again in place after a fault (exit code 70), up to N times in a row without a new checkpoint; "
        "default: %(default)s",
    )


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not {text!r}")
    return int(text)


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return value
