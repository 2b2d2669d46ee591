import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
TINY = (
    "--rounds 2 --warmup 1 --vocab-size 64 --d-model 32 --num-layers 2 --num-heads 2 --sequence-length 16 "
    "--batch-sequences 4 --micro-batch-sequences 2"
)


def test_engine_and_plain_loop_do_the_same_work_and_the_results_say_on_what(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), *TINY.split(), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "plain loop, minimal GPT" in done.stdout
    (file,) = tmp_path.glob("train_step-*.json")
    results = json.loads(file.read_text())
    assert {"cpu", "threads", "torch", "deepspeed"} <= results["machine"].keys()
    assert "MALLOC_MMAP_THRESHOLD_" in results["allocator"]
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 1e-2)):
        found = results["results"][precision]
        assert found["largest_loss_difference"] < tolerance
        assert set(found["comparisons"]) == {"engine / layers", "layers / minimal"}
        assert all(len(row["wall_s"]) == 2 for row in found["contestants"].values())
