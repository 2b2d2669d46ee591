"""The commands of a cluster."""

from typing import Any

from launch.arguments import add, add_overrides, positive


def add_cluster_commands(commands: Any) -> None:
    """`pretrain submit`, `pretrain status`."""
    _add_submit(commands)
    _add_status(commands)


def _add_submit(commands: Any) -> None:
    submit = add(commands, "submit", "train, prepare or evaluate as a Slurm job", "submit.submit")
    submit.epilog = (
        "A cluster is one YAML file: configs/clusters/NAME.yaml here, a shipped one by name, or any by its path.\n"
        "--dry-run shows the whole script. What is submitted is slurm/TASK.sbatch with these options and variables."
    )
    submit.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or a shipped config by name; with --task evaluate a run's folder"
    )
    add_overrides(submit)
    submit.add_argument("--cluster", required=True, metavar="NAME", help="where it runs: a name, or a YAML file")
    submit.add_argument(
        "--task", choices=("train", "prepare", "evaluate"), default="train", help="default: %(default)s"
    )
    submit.add_argument(
        "--nodes",
        type=positive,
        metavar="N",
        help="default: as many as the layout takes; with layout.dp=auto the run fills them",
    )
    submit.add_argument(
        "--time", metavar="T", help="limit of one job: minutes, HH:MM:SS or D-HH:MM:SS; default: the cluster's"
    )
    submit.add_argument(
        "--after",
        type=positive,
        metavar="JOB",
        help="start when that job has ended well, such as one that prepares the data",
    )
    submit.add_argument("--dry-run", action="store_true", help="show the script; submit and write nothing")
    submit.add_argument(
        "--watch", action="store_true", help="follow state and log until the run has ended, and exit as it did"
    )
    submit.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="a field or section that a continued run may change, such as train.steps; repeatable",
    )


def _add_status(commands: Any) -> None:
    status = add(commands, "status", "state, step, loss and speed of all runs below a folder", "status.status")
    status.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="or one run; default: %(default)s")
    status.add_argument("--interval", type=positive, default=5, metavar="S", help="of a terminal; default: %(default)s")
    status.add_argument("--once", action="store_true", help="do not refresh; so where the output is no terminal")
    status.add_argument("--json", action="store_true", help="for scripts, once")
