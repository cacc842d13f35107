"""How many bytes a quantised linear layer takes, from ``quantization_config`` or an engine's own flag.

Sources: AutoAWQ and GPTQ (packed integers, one scale and one zero point per group and column),
the compressed-tensors ``config_groups``, FP8 block scales, and the OCP MX and NVFP4 block formats
(one 8-bit scale for 32, respectively 16, values).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .plan_error import PlanError


@dataclass(frozen=True)
class Quantization:
    """``bits`` per weight of a linear layer; ``scale_bits`` per weight for scales and zero points, which are tensors of
    their own; ``method`` None: not quantised. ``fp8_kv``: the checkpoint declares an FP8 KV cache, which
    engines use for dtype ``auto``.
    """

    method: str | None = None
    bits: float | None = None
    scale_bits: float = 0.0
    fp8_kv: bool = False

    def linear_tensors(self, elements: int, dtype_bytes: int) -> list[int]:
        """Bytes of the tensors that hold a linear layer of ``elements`` weights."""
        if self.bits is None:
            return [elements * dtype_bytes]
        tensors = [int(elements * self.bits / 8)]
        if self.scale_bits:
            tensors.append(int(elements * self.scale_bits / 8))
        return tensors


def _group_scale_bits(bits: int, group: int, zero_points: bool) -> float:
    """A 16-bit scale, and a zero point as wide as a weight, for each group; none for whole columns."""
    return (16 + (bits if zero_points else 0)) / group if group > 0 else 0.0


def quantization_of(name: str, config: Mapping[str, Any]) -> Quantization:
    """The checkpoint's own quantization. Raises PlanError for a method that has no rule here."""
    declared = config.get("quantization_config")
    if not declared:
        return Quantization()
    if not isinstance(declared, Mapping):
        raise ValueError(f"quantization_config is {declared!r}, not a mapping")
    method = str(declared.get("quant_method", "")).lower()
    if method in ("awq", "gptq"):
        bits, group = int(declared["bits"]), int(declared.get("group_size", 128))
        return Quantization(method, bits, _group_scale_bits(bits, group, zero_points=True))
    if method == "fp8":
        return Quantization(method, 8, 32 / (128 * 128))
    if method == "mxfp4":
        return Quantization(method, 4, 8 / 32)
    if method == "modelopt":
        return _modelopt(name, declared)
    if method == "compressed-tensors":
        return _compressed_tensors(name, declared)
    raise _unknown(name, method)


def _modelopt(name: str, declared: Mapping[str, Any]) -> Quantization:
    inner = declared.get("quantization", declared)
    algorithm = str(inner.get("quant_algo", "")).upper()
    kv = str(inner.get("kv_cache_quant_algo") or "").upper() == "FP8" or bool(inner.get("kv_cache_scheme"))
    if algorithm == "FP8":
        return Quantization("modelopt", 8, fp8_kv=kv)
    if algorithm == "NVFP4":
        return Quantization("modelopt_fp4", 4, 8 / 16, kv)
    raise _unknown(name, f"modelopt {algorithm}")


def _compressed_tensors(name: str, declared: Mapping[str, Any]) -> Quantization:
    kv = bool(declared.get("kv_cache_scheme"))
    groups = [group["weights"] for group in declared["config_groups"].values()]
    if not groups:
        raise _unknown(name, "compressed-tensors without config_groups")
    widest = max(groups, key=lambda weights: int(weights["num_bits"]))
    bits, size = int(widest["num_bits"]), int(widest.get("group_size") or 0)
    if widest.get("type") == "float" and bits == 4:
        return Quantization("compressed-tensors", bits, 8 / (size or 16), kv)
    zero_points = not widest.get("symmetric", True)
    return Quantization("compressed-tensors", bits, _group_scale_bits(bits, size, zero_points), kv)


def quantized_on_load(flag: str) -> Quantization | None:
    """What ``--quantization FLAG`` does to a checkpoint that is not quantised, or None if it is not sized here."""
    return {"fp8": Quantization("fp8", 8)}.get(flag)


def _unknown(name: str, method: str) -> PlanError:
    return PlanError(
        f"quantization {method!r} of {name} has no size rule here",
        key="model",
        value=name,
        allowed="awq, gptq, fp8, mxfp4, modelopt (FP8, NVFP4), compressed-tensors",
        remedies=["give the loaded size: model: {name: ..., config: {...}, weights_gib: ...}"],
    )
