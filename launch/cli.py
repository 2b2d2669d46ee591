"""The `pretrain` command: arguments, one place where errors become messages and exit codes, nothing else.

`--help` is instant: a command's room is imported when the command runs. A user's mistake is one message on stderr, never a
traceback; what prints one is a fault of the program.

Exit codes: 0 done; 1 a check gave a bad verdict; 2 config or usage; 3 data; 4 checkpoint; 5 disk or permission; 70 a fault in a
rank; 75 preempted, checkpoint saved, start the same command again; 130 stopped by Ctrl-C
(parity by SIGTERM too, for it has nothing to save).
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EEXIST, EISDIR, ELOOP, ENAMETOOLONG, ENOTDIR
from typing import Any, NoReturn

from launch.arguments import Arguments, Parser, add, add_config, add_overrides, add_run, natural, nearest, positive
from launch.cluster_arguments import add_cluster_commands
from launch.data_arguments import add_data_commands
from pretrain.errors import Interrupted, PretrainError, StorageError
from pretrain.files import storage_error


class _ShowVersion(argparse.Action):
    """Looks the installed version up only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib import metadata

        try:
            print(f"pretrain {metadata.version('pretrain')}")
        except metadata.PackageNotFoundError:
            print("pretrain from a checkout that is not installed")
        parser.exit()


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
        hint = nearest(unknown[0].split("=")[0], flags)
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="pretrain",
        description="Pretrain transformer language models, from a corpus to a trained model.",
        epilog="Start with `pretrain quickstart`. CONFIG is a YAML file or a shipped one by name (quickstart.yaml);\n"
        "RUN is a run's folder (runs/quickstart).",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_config_commands(commands)
    _add_run_commands(commands)
    add_data_commands(commands)
    add_cluster_commands(commands)
    add(commands, "doctor", "what this machine has, what is missing, and the fix", "doctor")
    return parser


def _add_config_commands(commands: Any) -> None:
    quickstart = add(commands, "quickstart", "prepare, train, evaluate and report in one go", "quickstart")
    quickstart.add_argument(
        "config", nargs="?", default="quickstart.yaml", metavar="CONFIG", help="default: %(default)s"
    )
    add_overrides(quickstart)
    _add_preparation(quickstart)
    _add_nproc(quickstart)

    prepare = add(commands, "prepare", "corpus -> token shards", "prepare")
    add_config(prepare)
    _add_preparation(prepare)

    tokenizer = commands.add_parser("tokenizer", help="train a tokenizer", description="Tokenizers.")
    train_tokenizer = add(
        tokenizer.add_subparsers(metavar="COMMAND", required=True),
        "train",
        "train a byte-level BPE tokenizer on a config's corpus",
        "train_tokenizer",
    )
    add_config(train_tokenizer)
    _add_preparation(train_tokenizer)
    train_tokenizer.add_argument("--out", default="tokenizer.json", metavar="FILE", help="default: %(default)s")

    train = add(commands, "train", "train on this machine; continues a run that has a checkpoint", "train")
    add_config(train)
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
    parity = add(commands, "parity", "does a layout train the same model as one process?", "parity")
    parity.epilog = (
        "A LAYOUT is comma-separated: tp=2   pp=2,tp=2   dp=2,zero_stage=3,train.recompute=full\n"
        "Bare keys are layout's, dotted ones any field of the config. Exit code 1: one of them trains another model."
    )
    parity.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, or a shipped config by name")
    add_overrides(parity)
    parity.add_argument("--layouts", nargs="+", default=[], metavar="LAYOUT", help="what is held against one process")
    parity.add_argument(
        "--random", type=positive, metavar="N", help="in place of CONFIG: N random models under random layouts"
    )
    parity.add_argument("--seed", type=natural, default=0, metavar="S", help="of --random; default: %(default)s")
    parity.add_argument("--steps", type=positive, default=5, metavar="N", help="default: %(default)s")
    parity.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cpu: gloo; cuda: NCCL, untested; default: %(default)s"
    )
    parity.add_argument(
        "--timeout-s",
        type=positive,
        default=600,
        metavar="N",
        help="of one layout; ranks that hang show their stacks; default: %(default)s",
    )


def _add_run_commands(commands: Any) -> None:
    evaluate = add(commands, "evaluate", "validation loss of a run's last checkpoint", "evaluate")
    add_run(evaluate)

    generate = add(commands, "generate", "text from a run's last checkpoint", "generate")
    add_run(generate)
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

    report = add(commands, "report", "one HTML page about a run", "report")
    add_run(report)

    checkpoint = commands.add_parser(
        "checkpoint", help="list or verify checkpoints", description="Checkpoints of a run."
    )
    actions = checkpoint.add_subparsers(metavar="COMMAND", required=True)
    add_run(add(actions, "list", "the committed checkpoints of a run", "list_checkpoints"))
    add_run(add(actions, "verify", "hold every file of every checkpoint against its hash", "verify_checkpoints"))


def _add_preparation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("ray", "local"),
        help="what runs the preparation; default: ray, or local where it is not installed",
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes of the preparation; default: the cores"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="a running Ray cluster (or ray://..., auto) that works; default: one is started",
    )


def _add_nproc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nproc", type=positive, metavar="N", help="ranks on this machine; default: as many as the layout takes"
    )


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nnodes", type=positive, default=1, metavar="N", help="machines of the run; default: 1")
    parser.add_argument("--node-rank", type=int, default=0, metavar="K", help="number of this machine, from 0")
    parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where node 0 is reached by the others")
