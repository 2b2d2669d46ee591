"""`pretrain quickstart`: prepare, train, evaluate, sample and report, one after another.

It calls what the single commands call and has no way of its own. A second run reuses finished data, goes on from the last
checkpoint, and does again only what is missing.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.commands import Backend, console, prepare_data, shown
from launch.machine import this_machine
from launch.torchrun import Launch, check_before_data, run
from pretrain.config import RunConfig, load_config
from pretrain.resolve import World


def quickstart(
    config_name: str,
    overrides: Sequence[str],
    *,
    backend: Backend | None,
    workers: int | None,
    nproc: int | None,
) -> None:
    """From a config's corpus to a trained model and its report. Raises what the single commands raise."""
    config = load_config(config_name, overrides)
    options = _options(overrides, nproc)
    launch = Launch(World(nproc), again=shlex.join(["pretrain", "quickstart", config_name, *options]))
    # A mistake in the layout should not come to light after the corpus was prepared.
    check_before_data(config, launch, this_machine())

    _heading(1, f"data: {shown(config.data.folder.absolute())}")
    prepare_data(config, backend, workers)
    _heading(2, f"training: {config.name}")
    trained = run(config, launch)
    run_dir = trained.config.run_dir
    _heading(3, "evaluation and samples")
    _evaluate(run_dir, renew=trained.by_this_launch)
    _heading(4, "report")
    longer = _options([o for o in overrides if not o.startswith("train.steps=")], nproc)
    _close(trained.config, shlex.join(["pretrain", "train", config_name, *longer]))


def _options(overrides: Sequence[str], nproc: int | None) -> list[str]:
    words = [word for override in overrides for word in ("--set", override)]
    return words + (["--nproc", str(nproc)] if nproc else [])


def _evaluate(run_dir: Path, *, renew: bool) -> None:
    """Evaluation and samples; those of an earlier launch stay where nothing was trained since."""
    from pretrain.evaluate import evaluate
    from pretrain.generate import write_samples
    from pretrain.metrics.evaluation import EVALUATION_FILE
    from pretrain.metrics.jsonl import SAMPLES_FILE

    for name, make in ((EVALUATION_FILE, evaluate), (SAMPLES_FILE, write_samples)):
        if renew or not (run_dir / name).exists():
            make(run_dir, console())
        else:
            print(f"{shown(run_dir / name)}: reused")


def _heading(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)


def _close(config: RunConfig, train: str) -> None:
    """Where to look, and what to try next; `train` is the command that continues the run."""
    from pretrain.metrics.report import write_report

    run_dir = config.run_dir
    report = write_report(run_dir)
    name = shlex.quote(shown(run_dir))
    more = 2 * config.train.steps
    lines = [
        ("look at", f"{shown(report)}  (curves, layout, samples; open it in a browser)"),
        ("", f"{shown(run_dir)}/  (config.yaml, metrics.jsonl, checkpoints/, wandb/)"),
        ("try next", f"pretrain generate {name} {_prompt_option(config)}"),
        ("", f"{train} --set train.steps={more} --allow-change train.steps"),
        ("", "pretrain quickstart --set name=tensor-parallel --set layout.tp=2 --set layout.pp=1"),
        ("", "pretrain quickstart translation-quickstart.yaml  (English-German, encoder and decoder)"),
    ]
    print("\n".join(f"{label:10}{text}" for label, text in lines))


def _prompt_option(config: RunConfig) -> str:
    prompt = config.samples.prompts[0] if config.samples.prompts else "The"
    return f"--prompt {shlex.quote(prompt)}"
