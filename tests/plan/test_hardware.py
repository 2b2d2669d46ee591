import pytest

from pretrain.plan.hardware import bf16_peak_flops


@pytest.mark.parametrize(
    ("device_name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("AMD Instinct MI300X", 1307e12),
    ],
)
def test_peak_follows_the_name_that_the_driver_reports(device_name: str, peak: float):
    assert bf16_peak_flops(device_name) == peak


@pytest.mark.parametrize(
    "device_name",
    [
        "NVIDIA A10G",
        "Tesla V100-SXM2-16GB",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "AMD EPYC 9V74",
        "",
    ],
)
def test_unknown_device_has_no_peak_rather_than_that_of_a_namesake(device_name: str):
    assert bf16_peak_flops(device_name) is None
