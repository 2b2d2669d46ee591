"""Random models under random layouts, each a command line of `pretrain parity`; what a rule refuses is drawn again.

A draw is a pure function of the seed and the case's number. It is made as the command's own texts and goes through the command's
own way, so that a case that fails is run again alone by pasting it. Sizes are small and odd; weights are large (std 0.2), so
that logits tell tokens apart and a fault anywhere reaches the loss.
"""

import math
import random
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from pretrain.errors import ConfigError
from pretrain.parity.layouts import LayoutCase, read_cases

BASE = "parity.yaml"
"""The shipped config that the texts change."""
MAX_RANKS = 4
NOT_DRAWN: tuple[tuple[str, ...], ...] = (
    ("train.precision=fp16",),  # needs a GPU
    ("train.precision=bf16", "moe:"),  # rounding sends tokens to other experts, and each layout rounds otherwise
)
"""Words that are not drawn together though a rule would allow them, with the reason."""
_MOST_DRAWS = 400
_DRAWS_OF_AXES = 50


@dataclass(frozen=True)
class RandomCase:
    """A drawn case and the command that runs it alone."""

    number: int
    case: LayoutCase
    command: str


def draw(seed: int, number: int, *, device: str = "cpu", steps: int = 5) -> RandomCase:
    """The case of a number. Raises ConfigError where nothing that was drawn is allowed: a rule then refuses all."""
    rng = random.Random(f"parity {seed} {number}")
    last: ConfigError | None = None
    axes: dict[str, int] = {}
    for attempt in range(_MOST_DRAWS):
        if (
            attempt % _DRAWS_OF_AXES == 0
        ):  # kept meanwhile, or the layouts that ask least of a model would be drawn most
            axes = _axes(rng)
        texts, layout = _Draw(rng, axes).texts()
        told = ",".join((*texts, layout))
        if any(all(word in told for word in words) for words in NOT_DRAWN):
            continue
        try:
            (case,), _ = read_cases(BASE, texts, [layout], device=device, steps=steps)
        except ConfigError as error:
            last = error
            continue
        sets = [word for text in texts for word in ("--set", text)]
        command = ["pretrain", "parity", BASE, *sets, "--steps", str(steps), "--layouts", layout]
        return RandomCase(number, case, shlex.join(command))
    raise ConfigError(f"{_MOST_DRAWS} draws of seed {seed} were refused; the last one: {last}")


@dataclass(frozen=True)
class _Draw:
    """One attempt."""

    rng: random.Random
    axes: dict[str, int]

    def texts(self) -> tuple[list[str], str]:
        """`--set` texts, and the layout's text."""
        data = self.data()
        micro, rounds = self.rng.randint(1, 3), self.rng.randint(1, 5)
        sequences = micro * rounds * self.size("dp")
        trained = {
            "model": self.model(data),
            "data": data,
            "schedule": self.schedule(),
            "train.loss": self.pick(
                {}, {"z_loss": 0.01}, {"label_smoothing": 0.1}, {"z_loss": 0.01, "label_smoothing": 0.2}
            ),
            "train.micro_batch_sequences": micro,
            "train.global_batch_tokens": sequences * data["sequence_length"],
            "optimizer.weight_decay": self.pick(0.0, 0.1),
            "run.seed": self.rng.randrange(1000),
        }
        return [f"{name}={_flow(value)}" for name, value in trained.items()], self.layout()

    def pick(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def often(self, share: float) -> bool:
        return self.rng.random() < share

    def size(self, *names: str) -> int:
        """Product of the sizes of axes."""
        return math.prod(self.axes.get(name, 1) for name in names)

    def multiple(self, unit: int, lowest: int, highest: int) -> int:
        """Mostly a multiple of what an axis divides by, now and then any number."""
        if self.often(0.1):
            return self.rng.randint(lowest, highest)
        return unit * self.rng.randint(-(-lowest // unit), highest // unit)

    def layout(self) -> str:
        """With what else depends on how a model is run, not on what it is."""
        piped = "pp" in self.axes
        more: dict[str, Any] = {}
        if not piped or self.often(0.1):
            more["zero_stage"] = self.pick(0, 1, 2, 3)
        if "tp" in self.axes:
            more["sequence_parallel"] = self.pick("enabled", "disabled")
        if piped:
            more["pipeline_schedule"] = self.pick("1f1b", "zb-h1")
        if not piped and self.often(0.15):
            more["offload"] = self.pick("optimizer", "optimizer_and_parameters")
        more["train.recompute"] = self.pick("none", "selective", "full")
        if self.often(0.3):
            more["train.loss_tile_tokens"] = self.rng.randint(1, 40)
        if self.often(0.3):
            more["train.feed_forward_tile_tokens"] = self.rng.randint(1, 40)
        if self.often(0.2):
            more["train.precision"] = self.pick("bf16", "fp16")
        return ",".join(f"{name}={value}" for name, value in (self.axes | more).items())

    def data(self) -> dict[str, Any]:
        unit = self.size("tp", "ulysses", "ring") * (2 if "ring" in self.axes else 1)
        data: dict[str, Any] = {"dir": "unused", "sequence_length": self.multiple(unit, 8, 24)}
        if self.often(0.4):
            data |= {"objective": "seq2seq", "source_length": self.multiple(unit, 8, 16)}
        return data

    def model(self, data: dict[str, Any]) -> dict[str, Any]:
        heads = self.multiple(self.size("tp", "ulysses"), 1, 8)
        longest = max(data["sequence_length"], data.get("source_length", 0))
        model: dict[str, Any] = {
            "vocab_size": self.rng.randint(17, 97),
            "d_model": self.rng.randint(12, 40),
            "num_layers": self.rng.randint(1, 4),
            "num_heads": heads,
            "num_kv_heads": self.rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
            "head_dim": self.rng.randint(3, 10),
            "d_ff": self.multiple(self.size("tp"), 7, 48),
            "max_sequence_length": longest + self.rng.randint(0, 3),
            "norm": self.pick("layernorm", "rmsnorm"),
            "norm_position": self.pick("pre", "post"),
            "block": self.pick("serial", "serial", "parallel"),
            "positions": self.pick("sinusoidal", "learned", "rotary", "none"),
            "activation": self.pick("relu", "gelu", "gelu_tanh", "swiglu"),
            "biases": [part for part in ("attention", "feed_forward", "norm") if self.often(0.5)],
            "qk_norm": self.pick("none", "head"),
            "embeddings": self.pick("tied", "untied"),
            "embedding_scale": self.pick("none", "sqrt_d_model"),
            "logit_scale": self.pick("none", "rsqrt_d_model"),
            "dropout": self.pick(0.0, 0.0, 0.1),
            "attention_dropout": self.pick(0.0, 0.0, 0.1),
            "initialization": self.initialization(),
        }
        if "source_length" in data:
            model |= {"architecture": "encoder_decoder", "num_encoder_layers": self.rng.randint(1, 3)}
        return model | ({"moe": self.moe()} if "ep" in self.axes or self.often(0.3) else {})

    def initialization(self) -> dict[str, Any]:
        scheme = self.pick("normal", "normal", "xavier_uniform", "fan_in")
        deviation = {"std": 0.2} if scheme == "normal" else {"scheme": scheme, "embedding_std": 0.5}
        return deviation | {"residual_scale": self.pick("none", "depth")}

    def moe(self) -> dict[str, Any]:
        experts = self.multiple(self.size("ep"), 2, 6)
        return {
            "num_experts": experts,
            "experts_per_token": self.rng.randint(1, min(3, experts)),
            "d_ff": self.multiple(self.size("tp"), 5, 24),
            "num_shared_experts": self.pick(0, 0, 1, 2),
            "score": self.pick("softmax", "sigmoid"),
            "normalize_weights": self.pick(True, False),
            "routed_scale": self.pick(1.0, 2.5),
            "capacity_factor": self.pick(None, None, 0.7, 1.25),
            "balance": self.pick("auxiliary_loss", "bias", "none"),
            "auxiliary_loss": 0.05,
            "router_z_loss": self.pick(0.0, 0.01),
            "first_dense_layers": self.pick(0, 0, 1),
        }

    def schedule(self) -> dict[str, Any]:
        name = self.pick("cosine", "linear", "constant")
        return {"name": name, "warmup_steps": self.rng.randint(0, 2)}


def _axes(rng: random.Random) -> dict[str, int]:
    """Sizes above 1; the experts' is added where the data axis allows it, in half of the layouts."""
    sizes = dict.fromkeys(("tp", "pp", "dp", "ring", "ulysses"), 1)
    for name in rng.sample(list(sizes), rng.randint(1, 3)):
        ranks = math.prod(sizes.values())
        sizes[name] = rng.choice([n for n in range(1, MAX_RANKS + 1) if n * ranks <= MAX_RANKS])
    data = sizes["dp"] * sizes["ring"] * sizes["ulysses"]
    experts = rng.choice([n for n in range(1, data + 1) if data % n == 0]) if rng.random() < 0.5 else 1
    return {name: size for name, size in (sizes | {"ep": experts}).items() if size > 1}


def _flow(value: Any) -> str:
    """YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).strip()
    return text.removesuffix("\n...").strip()
