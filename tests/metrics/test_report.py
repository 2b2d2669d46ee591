"""The report: everything a run folder tells, harmless whatever a model wrote, and possible at any moment of a run."""

import math
from pathlib import Path

import pytest

from pretrain.config import RunConfig, write_resolved
from pretrain.errors import ConfigError
from pretrain.files import append_json_line
from pretrain.html import escaped
from pretrain.metrics.evaluation import Evaluation, read_evaluation, write_evaluation
from pretrain.metrics.jsonl import JsonlTracker
from pretrain.metrics.report import write_report

STEPS = 40


def config_of(run_dir: Path, **layout: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "quickstart",
            "run": {"dir": str(run_dir)},
            "model": {"vocab_size": 512, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64},
            "layout": {"pp": 2, "dp": 2, "tp": 1, **layout},
            "data": {"dir": "data", "sequence_length": 64},
            "train": {"steps": STEPS, "global_batch_tokens": 64 * 16 * layout.get("dp", 2), "micro_batch_sequences": 4},
        }
    )


def log(run_dir: Path, attempt: int, first: int, last: int, **changes: float) -> JsonlTracker:
    append_json_line(run_dir / "attempts.jsonl", {"generation": attempt, "time": 1.7e9, "hosts": [f"node-{attempt}"]})
    tracker = JsonlTracker(run_dir, attempt=attempt, complain=pytest.fail)
    tracker.start({}, {"stages": [["embedding", "layers.0"], ["layers.1", "head"]]})
    for step in range(first, last + 1):
        values = {
            "train/loss": 6.0 * math.exp(-step / 40),
            "train/grad_norm": 1.0,
            "train/lr": 1e-3,
            "train/tokens": 1000.0 * step,
            "perf/tokens_per_second": 4000.0,
            "perf/step_time_s": 0.25,
        }
        tracker.log_step(step, {**values, **changes})
    return tracker


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_resolved(config_of(folder), folder)
    log(folder, 1, 1, 25)
    tracker = log(folder, 2, 21, STEPS)
    tracker.log_event("skipped_step", step=30, reason="not finite")
    tracker.log_event("checkpoint", step=40)
    tracker.finish({"eval/bigram_loss": 3.75})
    write_evaluation(
        folder, Evaluation(STEPS, {"eval/loss": 3.2109, "eval/bits_per_byte": 1.4321}, (4.0, math.nan, 3.0))
    )
    return folder


def report(run_dir: Path) -> str:
    return write_report(run_dir).read_text()


def test_the_page_tells_results_layout_batch_config_and_history(run_dir: Path) -> None:
    text = report(run_dir)
    for told in ("3.211", "1.432", "40k", "node-1", "node-2", "finished"):
        assert told in text, told
    for heading in ("Result", "Curves", "Layout", "Attempts and events", "Config"):
        assert f"<h2>{heading}</h2>" in text
    assert "embedding, layers 0" in text
    assert "2,048" in text
    assert "micro_batch_sequences: 4" in text


def test_the_training_loss_of_each_source_is_drawn_where_there_are_several(run_dir: Path) -> None:
    assert "Training loss by source" not in report(run_dir)
    log(run_dir, 3, 41, 42, **{"train/loss/web": 3.0, "train/loss/notes": 4.0})
    text = report(run_dir)
    assert "Training loss by source" in text and "notes" in text and "metrics.jsonl has all" not in text
    log(run_dir, 3, 43, 44, **{f"train/loss/s{number}": 3.0 for number in range(6)})
    assert "Training loss by source (the first 6 of 8; metrics.jsonl has all)" in report(run_dir)


def test_baselines_stand_beside_the_loss(run_dir: Path) -> None:
    text = report(run_dir)
    assert f"uniform {math.log(512):.2f}" in text
    assert "bigram 3.75" in text


def test_restarts_and_skipped_steps_are_marked_and_checkpoints_are_not(run_dir: Path) -> None:
    text = report(run_dir)
    assert "<title>restart: attempt 2 from step 21</title>" in text
    assert "<title>skipped step: step 30</title>" in text
    assert "<title>checkpoint" not in text


def test_of_a_replayed_step_the_later_attempt_is_drawn(run_dir: Path) -> None:
    before = report(run_dir)
    log(run_dir, 3, 35, STEPS, **{"train/grad_norm": 77.0})
    after = report(run_dir)
    assert "77" not in before.split("Gradient norm")[1].split("Learning rate")[0]
    assert "77" in after.split("Gradient norm")[1].split("Learning rate")[0]


def test_samples_are_escaped(run_dir: Path) -> None:
    hostile = "</pre><script>alert(1)</script>"
    append_json_line(run_dir / "samples.jsonl", {"step": 40, "prompt": hostile, "text": hostile, "settings": {}})
    text = report(run_dir)
    assert hostile not in text
    assert text.count(escaped(hostile)) == 2


def test_a_translation_shows_source_model_and_reference(run_dir: Path) -> None:
    row = {
        "step": 40,
        "kind": "translation",
        "prompt": "Open",
        "text": "Offen",
        "reference": "Öffnen",
        "settings": {"beam_size": 4},
    }
    append_json_line(run_dir / "samples.jsonl", row)
    text = report(run_dir)
    for told in ("source", "Open", "Offen", "Öffnen", "beam size 4"):
        assert told in text


def test_only_the_newest_samples_are_shown(run_dir: Path) -> None:
    for step in (20, 40):
        append_json_line(
            run_dir / "samples.jsonl", {"step": step, "prompt": f"prompt of {step}", "text": "", "settings": {}}
        )
    text = report(run_dir)
    assert "prompt of 40" in text
    assert "prompt of 20" not in text


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    write_resolved(config_of(tmp_path), tmp_path)
    text = report(tmp_path)
    assert "0 of 40 steps" in text
    assert "running, or was killed" in text


def test_a_diverged_run_has_a_report(tmp_path: Path) -> None:
    write_resolved(config_of(tmp_path), tmp_path)
    log(tmp_path, 1, 1, 5, **{"train/loss": math.nan, "train/grad_norm": math.inf})
    assert "<h2>Curves</h2>" in report(tmp_path)


def test_a_run_on_thousands_of_ranks_has_a_small_report(tmp_path: Path) -> None:
    write_resolved(config_of(tmp_path, pp=2, dp=512, tp=4), tmp_path)
    text = report(tmp_path)
    assert "more</span>" in text
    assert len(text) < 100_000


def test_a_long_run_has_a_small_report(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        for step in range(41, 30_000):
            file.write(
                f'{{"step": {step}, "attempt": 2, "time": 0, "train/loss": {3 + step % 7}, "train/grad_norm": 1.5}}\n'
            )
    assert len(report(run_dir)) < 200_000


def test_a_secret_in_the_environment_is_not_in_the_report(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-123456789")
    path = run_dir / "config.yaml"
    path.write_text(path.read_text().replace("dir: data\n", "dir: /data/canary-123456789\n"))
    assert "canary" not in report(run_dir)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        write_report(tmp_path)


def test_evaluations_are_kept_with_their_gaps(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    write_evaluation(tmp_path, Evaluation(3, {"eval/loss": 1.5}, (1.0, math.nan)))
    kept = read_evaluation(tmp_path)
    assert kept is not None
    assert kept.values == {"eval/loss": 1.5}
    assert kept.loss_by_position[0] == 1.0
    assert math.isnan(kept.loss_by_position[1])
