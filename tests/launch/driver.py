"""A launcher in a process of its own, with ranks from ranks.py: `driver.py CONFIG NPROC [--set ...]`."""

import sys
from pathlib import Path

from launch.cli import exit_code_of
from launch.torchrun import Launch, run
from pretrain.config import load_config
from pretrain.resolve import World

RANK_COMMAND = (sys.executable, str(Path(__file__).with_name("ranks.py")))


def main() -> int:
    config, nproc, *overrides = sys.argv[1:]
    launch = Launch(World(int(nproc)), rank_command=RANK_COMMAND, again="pretrain train AGAIN")

    def work() -> None:
        run(load_config(config, overrides), launch)

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
