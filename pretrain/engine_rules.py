"""Rules between fields that concern the engine: schedules, precision, what lies in the host's memory."""

from pretrain.config import RunConfig
from pretrain.rule import Rule

ENGINE_RULES: tuple[Rule[RunConfig], ...] = (
    Rule(
        "zero_0_is_fp32",
        lambda c: c.layout.zero_stage == 0 and c.train.precision != "fp32",
        lambda c: (
            f"layout.zero_stage=0 cannot run with train.precision={c.train.precision}: DeepSpeed would accumulate gradients in "
            f"{c.train.precision} there (deepspeed/runtime/engine.py, _do_optimizer_sanity_check, has no fp32 accumulation "
            "without ZeRO); set layout.zero_stage=1 (the same work at dp=1), or train.precision=fp32"
        ),
    ),
    Rule(
        "fp16_needs_gpu",
        lambda c: c.train.precision == "fp16" and c.train.device == "cpu",
        lambda c: (
            "train.precision=fp16 needs a GPU, and train.device=cpu: CPUs multiply fp16 slower than fp32, and DeepSpeed refuses "
            "it on most (deepspeed/runtime/engine.py, is_fp16_supported); set train.precision=bf16 or fp32"
        ),
    ),
    Rule(
        "zero_bubble_needs_pipeline",
        lambda c: c.layout.pipeline_schedule == "zb-h1" and c.parallel_layout.pp == 1,
        lambda c: (
            "layout.pipeline_schedule=zb-h1 fills the bubble of a pipeline, and layout.pp=1 has none; set layout.pp=2 or more, "
            "or layout.pipeline_schedule=1f1b"
        ),
    ),
    Rule(
        "offload_needs_zero",
        lambda c: c.layout.offload != "none" and c.layout.zero_stage == 0,
        lambda c: (
            f"layout.offload={c.layout.offload} cannot run with layout.zero_stage=0: it is ZeRO's optimizer that keeps its state "
            "in the host's memory (deepspeed/runtime/zero/offload_config.py); set layout.zero_stage=1, or layout.offload=none"
        ),
    ),
    Rule(
        "offloaded_parameters_need_zero_3",
        lambda c: c.layout.offload == "optimizer_and_parameters" and c.layout.zero_stage in (1, 2),
        lambda c: (
            f"layout.offload=optimizer_and_parameters cannot run with layout.zero_stage={c.layout.zero_stage}: only ZeRO-3 "
            "fetches parameters when they are used (deepspeed/runtime/zero/offload_config.py: valid only with stage 3); set "
            "layout.zero_stage=3 (with layout.pp=1), or layout.offload=optimizer"
        ),
    ),
)
"""In the order in which they are told."""
