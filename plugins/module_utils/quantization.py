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
    """``bits`` per weight of a linear layer, its scales included; ``method`` None: not quantised.

    ``fp8_kv``: the checkpoint declares an FP8 KV cache, which engines use for dtype ``auto``.
    """

    method: str | None = None
    bits: float | None = None
    fp8_kv: bool = False

    def linear_bytes(self, elements: int, dtype_bytes: int) -> int:
        return elements * dtype_bytes if self.bits is None else int(elements * self.bits / 8)


def _grouped(bits: int, group: int, zero_points: bool) -> float:
    if group <= 0:
        return float(bits)
    return bits + (16 + (bits if zero_points else 0)) / group


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
        return Quantization(method, _grouped(bits, group, zero_points=True))
    if method == "fp8":
        return Quantization(method, 8 + 32 / (128 * 128))
    if method == "mxfp4":
        return Quantization(method, 4.25)
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
        return Quantization("modelopt", 8.0, kv)
    if algorithm == "NVFP4":
        return Quantization("modelopt_fp4", 4.5, kv)
    raise _unknown(name, f"modelopt {algorithm}")


def _compressed_tensors(name: str, declared: Mapping[str, Any]) -> Quantization:
    kv = bool(declared.get("kv_cache_scheme"))
    widest = 0.0
    for group in declared["config_groups"].values():
        weights = group["weights"]
        bits, size = int(weights["num_bits"]), int(weights.get("group_size") or 0)
        if weights.get("type") == "float" and bits == 4:
            widest = max(widest, 4 + 8 / (size or 16))
        else:
            widest = max(widest, _grouped(bits, size, zero_points=not weights.get("symmetric", True)))
    if not widest:
        raise _unknown(name, "compressed-tensors without config_groups")
    return Quantization("compressed-tensors", widest, kv)


def quantized_on_load(flag: str) -> Quantization | None:
    """What ``--quantization FLAG`` does to a checkpoint that is not quantised, or None if it is not sized here."""
    return {"fp8": Quantization("fp8", 8.0)}.get(flag)


def _unknown(name: str, method: str) -> PlanError:
    return PlanError(
        f"quantization {method!r} of {name} has no size rule here",
        key="model",
        value=name,
        allowed="awq, gptq, fp8, mxfp4, modelopt (FP8, NVFP4), compressed-tensors",
        remedies=["give the loaded size: model: {name: ..., config: {...}, weights_gib: ...}"],
    )
