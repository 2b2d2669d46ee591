"""DeepSpeed compiles nothing and prints nothing on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os
from pretrain.engine.world import end_world, start_world
device = start_world("cpu")
import torch, deepspeed
torch.distributed.barrier()
model = torch.nn.Linear(4, 4)
engine, *_ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters(), fused=True), dist_init_required=False,
    config={"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "zero_optimization": {"stage": 1}},
)
engine.backward(engine(torch.ones(1, 4)).sum())
engine.step()
end_world()
print("done", device)
"""


def test_no_extension_is_built_on_a_cpu(tmp_path: Path) -> None:
    environment = os.environ | {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29581",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
        "PATH": str(tmp_path),  # neither a compiler nor nvcc can be found
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("CUDA_HOME", None)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done cpu\n"
    assert not (tmp_path / "extensions").exists()
