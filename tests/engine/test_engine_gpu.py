"""One step on a GPU equals one on a CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import json, sys
import torch
from pretrain.engine.build import build_engine
from pretrain.engine.world import end_world, start_world
from pretrain.parallel.mesh import ProcessMesh
from tests.layouts.cases import CASES, ONE, micro_batches

device = start_world(sys.argv[1])
mesh = ProcessMesh.create(ONE.layout, device)
config = CASES["llama-untied"].config(ONE)
config = config.model_copy(update={"train": config.train.model_copy(update={"device": sys.argv[1]})})
engine = build_engine(config, mesh, 5)
results = [engine.train_step(micro_batches(CASES["llama-untied"], step, ONE.layout, 0)) for step in range(3)]
end_world()
print(json.dumps([[r.loss, r.grad_norm] for r in results]))
"""


def steps_on(device: str, port: int) -> list[list[float]]:
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_as_a_cpu_does() -> None:
    for there, here in zip(steps_on("cuda", 29591), steps_on("cpu", 29592), strict=True):
        assert there == pytest.approx(here, rel=1e-4)
