"""Peak speed of GPUs in matrix products, as their vendor states it: dense, without sparsity.

Data sheets that print numbers "with sparsity" are halved. A tensor core's fp16 rate is the one with
fp32 accumulation, which is how torch multiplies. A card that is not in the table has no peak here,
rather than that of a card with a similar name: A10 and A10G, or a full GPU and its MIG slice, are
different machines.
"""

import dataclasses

from ropewalk.model.spec import Numerics

TERA = 1e12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """Dense peak of one GPU in FLOP/s, by precision; None where it has no such unit."""

    fp32: float
    tf32: float | None
    fp16: float
    bf16: float | None


def _peak(fp32: float, tf32: float | None, fp16: float, bf16: float | None) -> Peak:
    """Return a peak given in TFLOP/s."""
    return Peak(
        fp32=fp32 * TERA,
        tf32=None if tf32 is None else tf32 * TERA,
        fp16=fp16 * TERA,
        bf16=None if bf16 is None else bf16 * TERA,
    )


# NVIDIA V100 data sheet (January 2020).
_V100_SXM2 = _peak(15.7, None, 125, None)
_V100_PCIE = _peak(14, None, 112, None)
_V100S = _peak(16.4, None, 130, None)
# NVIDIA A100 data sheet: the same for 40 and 80 GB, SXM and PCIe.
_A100 = _peak(19.5, 156, 312, 312)
# NVIDIA H100 architecture white paper, appendix; NVIDIA H200 data sheet: the same chip.
_H100_SXM5 = _peak(66.9, 494.7, 989.4, 989.4)
# NVIDIA H100 PCIe data sheet: 51, with sparsity 756 and 1,513.
_H100_PCIE = _peak(51, 378, 756.5, 756.5)
# NVIDIA H100 NVL and H200 NVL data sheets: 60, with sparsity 835 and 1,671.
_HOPPER_NVL = _peak(60, 417.5, 835.5, 835.5)
# NVIDIA L4 data sheet: 30.3, with sparsity 120 and 242.
_L4 = _peak(30.3, 60, 121, 121)
# NVIDIA L40S data sheet.
_L40S = _peak(91.6, 183, 362.05, 362.05)
# NVIDIA A10 data sheet.
_A10 = _peak(31.2, 62.5, 125, 125)
# NVIDIA Ada and Ampere GA102 white papers, appendix A: tensor rates with fp32 accumulation.
_RTX_4090 = _peak(82.6, 82.6, 165.2, 165.2)
_RTX_3090 = _peak(35.6, 35.6, 71, 71)

# By the name the driver gives (torch.cuda.get_device_name), without "NVIDIA" or "Tesla" before it.
PEAKS = {
    "V100-SXM2-16GB": _V100_SXM2,
    "V100-SXM2-32GB": _V100_SXM2,
    "V100-PCIE-16GB": _V100_PCIE,
    "V100-PCIE-32GB": _V100_PCIE,
    "V100S-PCIE-32GB": _V100S,
    "A100-SXM4-40GB": _A100,
    "A100-SXM4-80GB": _A100,
    "A100-PCIE-40GB": _A100,
    "A100 80GB PCIe": _A100,
    "H100 80GB HBM3": _H100_SXM5,
    "H100 PCIe": _H100_PCIE,
    "H100 NVL": _HOPPER_NVL,
    "H200": _H100_SXM5,
    "H200 NVL": _HOPPER_NVL,
    "L4": _L4,
    "L40S": _L40S,
    "A10": _A10,
    "GeForce RTX 4090": _RTX_4090,
    "GeForce RTX 3090": _RTX_3090,
}


def peak_flops(device: str, numerics: Numerics) -> float | None:
    """Return the dense peak in FLOP/s of one device under the study's numerics, None if unknown.

    `device` is the name its driver gives. fp32 products run as TF32 where `numerics.matmul` allows
    it and the GPU has it (torch treats 'high' and 'medium' alike on CUDA). CPUs have no peak here:
    it depends on clocks and instruction sets that their names do not tell.
    """
    peak = PEAKS.get(device.removeprefix("NVIDIA ").removeprefix("Tesla "))
    if peak is None:
        return None
    match numerics.precision:
        case "bf16":
            return peak.bf16
        case "fp16":
            return peak.fp16
        case "fp32":
            return peak.fp32 if numerics.matmul == "highest" else peak.tf32 or peak.fp32
