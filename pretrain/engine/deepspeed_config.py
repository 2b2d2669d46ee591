"""The one file that knows DeepSpeed's config keys."""

from typing import Any

from pretrain.engine.settings import TrainSettings
from pretrain.parallel.settings import LayoutSettings


def deepspeed_config(
    train: TrainSettings, layout: LayoutSettings, *, clip_norm: float | None, micro_batches: int
) -> dict[str, Any]:
    """DeepSpeed's config for one layout.

    `micro_batches` is the number that a rank takes through the model in a step. The optimizer and the learning rate are ours;
    `use_reentrant` false, because reentrant checkpointing on integer inputs detaches the first stage.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch_sequences,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 0.0 if clip_norm is None else clip_norm,
        "zero_optimization": {
            "stage": layout.zero_stage,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            "overlap_comm": layout.zero_stage >= 2 and train.device == "cuda",
            **_offload(layout, train.device),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "pipeline": {"use_reentrant": False, "pipe_partitioned": False, "grad_partitioned": False},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if train.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if train.precision == "fp16":
        # A loss scale of 0 is a dynamic one, see loss_scale.py; with a hysteresis of 1 every overflow halves it.
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 1,
        }
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _offload(layout: LayoutSettings, device: str) -> dict[str, Any]:
    """The parts of ZeRO's section that say what lies in the host's memory; pinned, where there is a device to copy from it."""
    place = {"device": "cpu", "pin_memory": device == "cuda"}
    parts = {"none": (), "optimizer": ("optimizer",), "optimizer_and_parameters": ("optimizer", "param")}
    return {f"offload_{part}": place for part in parts[layout.offload]}
