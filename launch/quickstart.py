"""`pretrain quickstart`: prepare, train, evaluate, sample and report, one after another.

It calls what the single commands call and has no way of its own. A second run reuses finished data, goes on from the last
checkpoint, and does again only what is missing.
"""

from collections.abc import Sequence

from launch.commands import Crew, again, evaluate_and_sample, prepare_data, shown
from launch.machine import this_machine
from launch.torchrun import Launch, check_before_data, run
from pretrain.config import RunConfig, load_config
from pretrain.resolve import World


def quickstart(
    config_name: str,
    overrides: Sequence[str],
    *,
    crew: Crew,
    nproc: int | None,
) -> None:
    """From a config's corpus to a trained model and its report. Raises what the single commands raise."""
    config = load_config(config_name, overrides)
    launch = Launch(World(nproc), again=again("quickstart", config_name, overrides=overrides, nproc=nproc))
    # A mistake in the layout should not come to light after the corpus was prepared.
    check_before_data(config, launch, this_machine())

    _heading(1, f"data: {shown(config.data.folder.absolute())}")
    prepare_data(config, crew)
    _heading(2, f"training: {config.name}")
    trained = run(config, launch)
    _heading(3, "evaluation and samples")
    evaluate_and_sample(trained.config, renew=trained.by_this_launch)
    _heading(4, "report")
    longer = [override for override in overrides if not override.startswith("train.steps=")]
    longer.append(f"train.steps={2 * trained.config.train.steps}")
    _close(trained.config, again("train", config_name, overrides=longer, nproc=nproc))


def _heading(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)


def _close(config: RunConfig, longer: str) -> None:
    """Where to look, and what to try next; `longer` is the command that trains the run on."""
    from pretrain.metrics.report import write_report

    run_dir = shown(config.run_dir)
    prompt = config.samples.prompts[0] if config.samples.prompts else "The"
    lines = [
        ("look at", f"{shown(write_report(config.run_dir))}  (curves, layout, samples; open it in a browser)"),
        ("", f"{run_dir}/  (config.yaml, metrics.jsonl, checkpoints/, wandb/)"),
        ("try next", again("generate", run_dir, "--prompt", prompt)),
        ("", f"{longer} --allow-change train.steps"),
        ("", again("quickstart", overrides=["name=tensor-parallel", "layout.tp=2", "layout.pp=1"])),
        ("", f"{again('quickstart', 'translation-quickstart.yaml')}  (English-German, encoder and decoder)"),
    ]
    print("\n".join(f"{label:10}{text}" for label, text in lines))
