"""`pretrain parity`: the cases of a command line to a table, and to one error where a verdict is bad."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from pretrain.errors import CheckFailed, ConfigError, RankFault
from pretrain.parity.check import Proof, Prover
from pretrain.parity.layouts import LayoutCase
from pretrain.parity.ranks import DeviceKind
from pretrain.parity.show import bar, proofs_table, tell_faults


def check_layouts(
    cases: Sequence[LayoutCase],
    notes: Sequence[str],
    *,
    device: DeviceKind,
    steps: int,
    timeout_s: float,
    console: Console,
) -> None:
    """Runs the cases and prints the table.

    Raises:
        ConfigError: there are not enough GPUs.
        CheckFailed: a layout trains another model.
        RankFault: ranks raised, died or hung.
    """
    _check_gpus(cases, device)
    for note in notes:
        console.print(Text(note))
    proofs: list[Proof] = []
    with Prover(device, steps, timeout_s) as prover, bar(console, len(cases)) as tell:
        try:
            for case in cases:
                tell(case.text)
                proofs.append(prover.prove(case))
        finally:  # who stops a long run sees what is done
            if proofs:
                console.print(proofs_table(proofs, console.width), soft_wrap=True)
    tell_faults(console, proofs)
    raise_verdict(proofs)


def raise_verdict(proofs: Sequence[Proof]) -> None:
    """Raises CheckFailed or RankFault where not every case passed."""
    differing = [proof for proof in proofs if proof.failed]
    if differing:
        raise CheckFailed(f"{len(differing)} of {len(proofs)} layouts train another model than the reference")
    broken = [proof for proof in proofs if proof.story]
    if broken:
        raise RankFault(f"the ranks of {len(broken)} of {len(proofs)} layouts failed; their story is above")


def _check_gpus(cases: Sequence[LayoutCase], device: DeviceKind) -> None:
    if device == "cpu":
        return
    import torch

    there = torch.cuda.device_count()
    for case in cases:
        size = case.config.parallel_layout.world_size
        if size > there:
            raise ConfigError(
                f'--device cuda: layout "{case.text}" has {size} ranks and this machine {there} GPU(s); use --device cpu'
            )
