"""Check of a published training time: what it asks of the hardware, in FLOPs."""

import dataclasses
from collections.abc import Mapping

from ropewalk.evaluate.findings import Check, Findings, Series
from ropewalk.model.flops import matmul_parameters, model_flops_per_token
from ropewalk.model.spec import Architecture

_DAY = 86_400  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """Days of two pretrainings that differ in their window (STRING, arXiv 2410.18745, A.2)."""

    tokens: float = 1e12  # of each
    gpus: int = 16
    peak: float = 312e12  # FLOP/s of one, dense bf16 (A100, vendor's data sheet)
    short_tokens: int = 2048
    long_tokens: int = 4096
    short_days: float = 28.0
    long_days: float = 32.0
    layers: int = 22
    hidden: int = 2048
    heads: int = 32
    kv_heads: int = 4
    ffn: int = 5632
    vocabulary_size: int = 128_256

    def run(self) -> Findings:
        """Compute speed and utilisation that the days ask for.

        By window, `short_...` and `long_...`: `speed` in tokens per second and GPU, `utilisation`
        by the convention of published ones (PaLM: attention over the whole square), and
        `least_utilisation` without any attention, the least that can have been executed.
        `time_ratio` is long over short in days, `flops_ratio` in FLOPs by that convention.
        """
        numbers: dict[str, float] = {}
        flops: dict[str, float] = {}
        curves: dict[str, Series] = {"utilisation": {"x": [], "y": []}}
        for name in ("short", "long"):
            length, days = getattr(self, f"{name}_tokens"), getattr(self, f"{name}_days")
            shape = Architecture(
                layers=self.layers,
                hidden=self.hidden,
                heads=self.heads,
                kv_heads=self.kv_heads,
                ffn=self.ffn,
                vocabulary_size=self.vocabulary_size,
                context_tokens=length,
            )
            speed = self.tokens / (days * _DAY * self.gpus)
            flops[name] = model_flops_per_token(shape, length)
            numbers[f"{name}_speed"] = speed
            numbers[f"{name}_utilisation"] = speed * flops[name] / self.peak
            numbers[f"{name}_least_utilisation"] = speed * 6 * matmul_parameters(shape) / self.peak
            curves["utilisation"]["x"].append(float(length))
            curves["utilisation"]["y"].append(numbers[f"{name}_utilisation"])
        numbers["time_ratio"] = self.long_days / self.short_days
        numbers["flops_ratio"] = flops["long"] / flops["short"]
        return Findings(numbers=numbers, series=curves)


CHECKS: Mapping[str, type[Check]] = {"training_time": TrainingTime}
