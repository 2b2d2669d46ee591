"""What the hardware can do at best: the denominator of MFU. No torch.

Peaks are the makers' datasheet figures for dense bf16 products with fp32 accumulation; where a datasheet prints the figure with
structured sparsity, half of it. No GPU sustains its figure (an 8,192 cube product on an H100 reaches 81 %), so that MFU never
reaches 1. CPUs have no entry: their figure depends on clock, threads and library, and a guess would make a meaningless MFU.
"""

_BF16_PEAKS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800 PCIe", 756e12),
    ("H800", 989e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("RTX A6000", 155e12),
    ("A40", 150e12),
    ("A30", 165e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 6000 Ada", 364e12),
    ("RTX 5090", 209e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("MI325X", 1307e12),
    ("MI300X", 1307e12),
    ("MI250X", 191e12),
)
"""Model designation -> FLOP/s. MI250X: of one of its two dies, each of which is a device."""


def bf16_peak_flops(device_name: str) -> float | None:
    """Peak bf16 FLOP/s of a device by the name that `torch.cuda.get_device_name` gives; None for one not in the table.

    A designation must stand as a word, for an "NVIDIA A10G" is no "A10"; laptop and export variants of a designation are slower
    devices. An unknown device gets no MFU rather than a wrong one.
    """
    words = device_name.replace("-", " ").split()
    if "Laptop" in words or "D" in words:
        return None
    for designation, peak in _BF16_PEAKS:
        wanted = designation.split()
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words))):
            return peak
    return None
