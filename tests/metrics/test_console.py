"""What a person sees: aligned plain lines that fit, the layout map, and no terminal codes in a log."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from pretrain.metrics.console import Batch, RunConsole, RunOverview, describe_layers, duration, short
from pretrain.parallel.layout import ParallelLayout

VALUES = {
    "train/loss": 4.56789,
    "train/grad_norm": 1.234,
    "train/lr": 3e-4,
    "perf/tokens_per_second": 4123.0,
    "perf/mfu": 0.612,
    "memory/host_rss_gib": 1.23,
    "data/wait_fraction": 0.003,
}


def overview(layout: ParallelLayout, **changes: object) -> RunOverview:
    stages = [["embedding", "layers.0", "layers.1"], ["layers.2", "layers.3", "head"]][: layout.pp]
    known: dict[str, object] = {
        "name": "quickstart",
        "run_dir": Path("runs/quickstart"),
        "layout": layout,
        "zero_stage": 1,
        "stages": stages,
        "batch": Batch(256, 4, 32, layout.dp),
        "num_parameters": 6_816_256,
        "precision": "bf16",
        "device": "cpu",
        "first_step": 0,
        "steps": 600,
    }
    return RunOverview(**{**known, **changes})  # type: ignore[arg-type]


def ticking_clock(seconds_a_call: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += seconds_a_call


def run_console(width: int = 80, **changes: object) -> tuple[RunConsole, io.StringIO]:
    file = io.StringIO()
    clock = ticking_clock(60.0)
    console = Console(file=file, width=width, highlight=False, markup=False, **changes)  # type: ignore[arg-type]
    return RunConsole(console, clock=lambda: next(clock)), file


@pytest.mark.parametrize("width", [50, 80, 140])
def test_banner_and_lines_fit_the_width(width: int) -> None:
    told, file = run_console(width)
    told.start(overview(ParallelLayout(pp=2, dp=8, tp=4)))
    told.step(10, VALUES)
    told.end("done", {"loss": "4.0 " * 40}, ["pretrain report runs/quickstart"])
    assert max(len(line) for line in file.getvalue().splitlines()) <= width


def test_a_log_file_has_no_terminal_codes_and_no_bar() -> None:
    told, file = run_console()
    told.start(overview(ParallelLayout()))
    told.tick(1)
    told.step(1, VALUES)
    told.evaluation(1, {"eval/loss": 4.0})
    told.end("done", {})
    assert "\x1b" not in file.getvalue()
    assert "\r" not in file.getvalue()


def test_a_terminal_gets_a_bar_that_moves_with_every_step() -> None:
    told, file = run_console(force_terminal=True)
    told.start(overview(ParallelLayout()))
    told.step(150, VALUES)
    told.tick(300)
    assert told._progress is not None
    told._progress.refresh()
    told.close()
    assert "step 300/600" in file.getvalue()
    assert "50%" in file.getvalue()


def test_values_stand_under_their_headings() -> None:
    told, file = run_console()
    told.start(overview(ParallelLayout()))
    told.step(150, VALUES)
    heading, line = [line for line in file.getvalue().splitlines() if "tok/s" in line or "150/600" in line]
    ends = {title: heading.index(title) + len(title) for title in heading.split()}
    cells = {title: line[:end].split()[-1] for title, end in ends.items()}
    assert cells == {
        "step": "150/600",
        "loss": "4.5679",
        "grad": "1.234",
        "lr": "3.00e-04",
        "tok/s": "4.12k",
        "MFU": "61.2%",
        "memory": "1.23GiB",
        "wait": "0.3%",
        "ETA": "3m00s",
    }


def test_values_that_are_not_known_are_dashes() -> None:
    told, file = run_console()
    told.start(overview(ParallelLayout()))
    told.step(1, {"train/loss": math.nan, "perf/mfu": math.nan})
    assert file.getvalue().splitlines()[-1].split()[1:8] == ["nan", "-", "-", "-", "-", "-", "-"]


def test_the_layout_map_places_every_rank() -> None:
    told, file = run_console()
    told.start(overview(ParallelLayout(pp=2, dp=2, tp=2)))
    lines = [line.split("stage ")[1].rstrip() for line in file.getvalue().splitlines() if "stage " in line]
    assert lines == ["0  [0 1] [2 3]  embedding, layers 0-1", "1  [4 5] [6 7]  layers 2-3, head"]


def test_the_layout_map_places_ranks_that_share_sequences() -> None:
    told, file = run_console()
    told.start(overview(ParallelLayout(ring=2, ulysses=2)))
    assert "stage 0  [0] [1] [2] [3]" in file.getvalue()
    assert "pp=1 dp=1 tp=1 ring=2 ulysses=2, 4 ranks" in file.getvalue()


def test_the_layout_map_of_a_large_world_is_short() -> None:
    told, file = run_console()
    told.start(overview(ParallelLayout(pp=2, dp=64, tp=8)))
    assert "stage 0  [0-7] [8-15] ... [504-511]" in file.getvalue()


def test_batch_arithmetic_multiplies_to_the_tokens_of_a_step() -> None:
    assert Batch(256, 4, 32, 2).describe() == (
        "8,192 tokens a step = 2 data ranks x 4 micro-batches x 4 sequences x 256 tokens"
    )


def test_text_from_outside_is_printed_as_it_is() -> None:
    told, file = run_console()
    told.message("fault in [bold]rank 1[/bold] :smile:")
    assert "[bold]rank 1[/bold] :smile:" in file.getvalue()


def test_headings_come_back_in_a_long_run() -> None:
    told, file = run_console()
    told.start(overview(ParallelLayout()))
    for step in range(1, 100):
        told.step(step, VALUES)
    assert sum("tok/s" in line for line in file.getvalue().splitlines()) == 4


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["embedding", "layers.0", "layers.1", "layers.2", "head"], "embedding, layers 0-2, head"),
        (
            ["encoder.layers.1", "decoder.embedding", "decoder.layers.0"],
            "encoder.layers 1, decoder.embedding, decoder.layers 0",
        ),
        ([], ""),
    ],
)
def test_layer_names_are_drawn_together(names: list[str], told: str) -> None:
    assert describe_layers(names) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"),
        (950, "950"),
        (4123, "4.12k"),
        (999_950, "1000k"),
        (12_345_678, "12.3M"),
        (7.5e12, "7.5T"),
        (math.nan, "-"),
    ],
)
def test_large_numbers_are_short(value: float, told: str) -> None:
    assert short(value) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0s"), (59.4, "59s"), (192, "3m12s"), (18_420, "5h07m"), (1_047_600, "12d03h"), (math.inf, "-")],
)
def test_durations_are_short(seconds: float, told: str) -> None:
    assert duration(seconds) == told
