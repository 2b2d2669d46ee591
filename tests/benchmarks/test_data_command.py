import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = (
    "--megabytes 0.5 --sources standard_library --contestants local pool batches --rounds 1 --workers 1 --vocab-size 800 "
    "--sequence-length 64 --batch 4 --cpu-s 0.05"
)


def test_contestants_make_the_same_tokens_and_the_results_say_on_what(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.data", *TINY.split(), "--work", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "plain multiprocessing" in done.stdout and "left out" not in done.stdout
    (file,) = tmp_path.glob("data-*.json")
    results = json.loads(file.read_text())
    assert {"cpu", "gigatoken", "ray"} <= results["machine"].keys() and "datatrove" in results["peers"]
    assert 0 < results["corpus"]["bytes"] <= 500_000
    found = results["results"]["tokenizing"]["contestants"]
    assert found["local"]["rounds"][0]["tokens"] == found["pool"]["rounds"][0]["tokens"] > 0
    (row,) = results["results"]["reading"]["contestants"]["batches"]["rounds"]
    assert row["tokens"] == row["batches"] * 4 * 64 and row["work_cpu_s"] > 0
