"""`pretrain parity --random`: drawn cases one after another, each told with the command that repeats it.

A random model may be so ill-conditioned that one process already shows rounding beyond the published tolerance. A layout is
then held against NOISE_FACTOR times what one process shows, at most CAP times the published one. A case beyond that proves
nothing, and is told so, where one process moves as far by itself or by a last bit of its weights (ill-conditioned: a gradient
that all but cancels), or where experts were chosen by a margin near rounding (a tie).
"""

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from pretrain.errors import CheckFailed
from pretrain.parity.check import Proof, Prover
from pretrain.parity.draw import RandomCase, draw
from pretrain.parity.ranks import DeviceKind
from pretrain.parity.show import bar, tell_faults


def prove_random(number: int, seed: int, prover: Prover) -> Iterator[tuple[RandomCase, Proof]]:
    """Draws and runs cases 0 to `number` - 1 of a seed."""
    for index in range(number):
        drawn = draw(seed, index, device=prover.device, steps=prover.steps)
        prover.forget()
        yield drawn, prover.prove(drawn.case)


def check_random(number: int, seed: int, *, device: DeviceKind, steps: int, timeout_s: float, console: Console) -> None:
    """Runs and tells them. Raises CheckFailed where one differs or its ranks failed."""
    found: Counter[str] = Counter()
    with Prover(device, steps, timeout_s, tolerance="measured") as prover, bar(console, number) as tell:
        tell(f"case 0 of seed {seed}")
        for drawn, proof in prove_random(number, seed, prover):
            found[proof.word] += 1
            style = {"same model": "green", "tie": "yellow", "ill-conditioned": "yellow"}.get(proof.word, "bold red")
            console.print(
                Text.assemble(
                    f"{drawn.number:>4}  ", (proof.word, style), f"  {proof.seconds:.1f} s  {proof.case.text}"
                )
            )
            console.print(Text(drawn.command, "dim"), soft_wrap=True)
            tell_faults(console, [proof])
            tell(f"case {drawn.number + 1} of seed {seed}")
    counts = ", ".join(f"{count} {word}" for word, count in found.items())
    console.print(f"{number} random cases of seed {seed}: {counts}")
    bad = number - sum(found[word] for word in ("same model", "tie", "ill-conditioned"))
    if bad:
        raise CheckFailed(f"{bad} of {number} random cases failed; each is run again by its command above")
