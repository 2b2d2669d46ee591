"""The commands of `pretrain data`."""

from typing import Any

from launch.arguments import add, add_config, add_run, natural, positive


def add_data_commands(commands: Any) -> None:
    """`pretrain data` and what follows it."""
    data = commands.add_parser("data", help="look into prepared data", description="What lies in prepared data.")
    actions = data.add_subparsers(metavar="COMMAND", required=True)
    inspect = add(
        actions, "inspect", "counts, sources, lengths and random documents of prepared data", "data_commands.inspect"
    )
    inspect.add_argument(
        "paths", nargs="+", metavar="PATH", help="a data folder (data/standard_library), or token shards"
    )
    inspect.add_argument(
        "--samples", type=natural, default=3, metavar="N", help="random documents of each source; default: %(default)s"
    )
    inspect.add_argument("--seed", type=natural, default=0, metavar="S", help="of the choice; default: %(default)s")
    verify = add(actions, "verify", "hold every block of prepared data against its checksum", "data_commands.verify")
    verify.add_argument("folder", metavar="FOLDER", help="a data folder, such as data/standard_library")
    mix = add(actions, "mix", "what a config's blend of sources gives: samples, tokens, epochs", "order_commands.mix")
    add_config(mix)
    trace = add(actions, "trace", "which documents were in a step of a run", "order_commands.trace")
    add_run(trace)
    trace.add_argument("--step", type=positive, required=True, metavar="K", help="as the metrics count them, from 1")
    trace.add_argument(
        "--rows",
        type=positive,
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
    taken = add(
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
    given = add(
        actions, "export", "a data folder -> token files of Megatron or datatrove", "data_commands.export_files"
    )
    given.add_argument("folder", metavar="FOLDER", help="a data folder")
    given.add_argument("--format", choices=("megatron", "datatrove"), required=True, help="what is written")
    given.add_argument(
        "--out", required=True, metavar="FILE", help="PREFIX of PREFIX.bin and PREFIX.idx, or a .ds file"
    )
    given.add_argument("--split", choices=("train", "validation"), default="train", help="default: %(default)s")
