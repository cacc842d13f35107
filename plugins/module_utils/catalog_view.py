"""Read access to the catalogues, which come in as plain dictionaries (see ``catalog/``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .gpu_code import any_runs_on, capability
from .plan_error import PlanError, did_you_mean

Known = TypeVar("Known")
DIGEST_REFERENCE = re.compile(r"(?P<name>[^@\s]+)@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Image:
    """An engine image: what it contains decides flags and where it runs. ``gpu_code`` (x86-64) and ``gpu_code_arm64``
    as in gpu_code.py."""

    key: str
    reference: str
    engine: str
    engine_version: str
    cuda: str
    min_driver: str
    gpu_code: tuple[str, ...]
    gpu_code_arm64: tuple[str, ...] = ()

    def at_least(self, version: str) -> bool:
        """Whether its engine is of that version or a later one."""
        return version_tuple(self.engine_version) >= version_tuple(str(version))

    def code_for(self, arm64: bool) -> tuple[str, ...]:
        return self.gpu_code_arm64 if arm64 else self.gpu_code

    def runs_on(self, compute_capability: str, arm64: bool) -> bool:
        return any_runs_on(self.code_for(arm64), capability(compute_capability))


@dataclass(frozen=True)
class Catalog:
    """``flags`` maps (engine, version) to the recorded options of that version."""

    gpus: Mapping[str, Any]
    drivers: Mapping[str, Any]
    images: Mapping[str, Any]
    models: Mapping[str, Any]
    overheads: Mapping[str, Any]
    profiles: Mapping[str, Any]
    flags: Mapping[tuple[str, str], Mapping[str, Any]]
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: tuple[str, ...], make: Callable[[], Known]) -> Known:
        """What ``make`` gives, worked out once for all hosts that are planned with this catalogue."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def gpu(self, key: Any) -> Mapping[str, Any]:
        entries = self.gpus["gpus"]
        if not isinstance(key, str) or key not in entries:
            raise PlanError(
                f"'{key}' is not in catalog/gpus.yml", key="serving_gpus", value=key, allowed=did_you_mean(key, entries)
            )
        return entries[key]

    def model(self, key: str) -> Mapping[str, Any]:
        entries = self.models["models"]
        if key not in entries:
            raise PlanError(
                f"'{key}' is not in catalog/models.yml",
                key="model",
                value=key,
                allowed=f"{did_you_mean(key, entries)}; or a directory with config.json; "
                "or {name: ..., config: {...config.json...}}",
            )
        return entries[key]

    def engine(self, name: str) -> Mapping[str, Any]:
        return self.profiles["engines"][name]

    def image(self, declared: Any, engine: str) -> Image:
        """The image of a service: a key, a reference with a digest, or a mapping that says what the reference holds."""
        if isinstance(declared, Mapping):
            return self._described_image(declared, engine)
        entries = self.images["images"]
        if isinstance(declared, str) and declared in entries:
            return self._image(declared, entries[declared]["reference"], entries[declared], engine)
        match = DIGEST_REFERENCE.fullmatch(str(declared))
        if match:
            for key, entry in entries.items():
                if match["name"] == entry["reference"].partition("@")[0]:
                    return self._image(key, str(declared), entry, engine)
            raise PlanError(
                f"nothing is known of what {declared} contains",
                key="image",
                value=declared,
                allowed="{reference: ...@sha256:..., engine_version: ..., cuda: ..., gpu_code: [sm_120, ...]}",
            )
        raise PlanError(
            f"'{declared}' is neither in catalog/images.yml nor a reference with a digest",
            key="image",
            value=declared,
            allowed=did_you_mean(declared, (k for k, e in entries.items() if e["engine"] == engine)),
        )

    def _described_image(self, declared: Mapping[str, Any], engine: str) -> Image:
        needed = {"reference", "engine_version", "cuda", "gpu_code"}
        if set(declared) != needed or not isinstance(declared["gpu_code"], (list, tuple)):
            raise PlanError(
                "the image's description is not complete",
                key="image",
                value=dict(declared),
                allowed=", ".join(sorted(needed)),
            )
        entry = {**declared, "engine": engine, "min_driver": self.min_driver(str(declared["cuda"]))}
        return self._image(str(declared["reference"]), str(declared["reference"]), entry, engine)

    def _image(self, key: str, reference: str, entry: Mapping[str, Any], engine: str) -> Image:
        if entry["engine"] != engine:
            raise PlanError(
                f"{key} is an image of {entry['engine']}, the service's engine is {engine}",
                key="image",
                value=key,
                allowed=", ".join(sorted(k for k, e in self.images["images"].items() if e["engine"] == engine)),
            )
        if entry.get("blocked"):
            raise PlanError(
                f"{key} cannot be used: {entry['blocked']}",
                key="image",
                value=key,
                allowed=", ".join(other.key for other in self.usable_images(engine)),
            )
        return Image(
            key,
            reference,
            engine,
            str(entry["engine_version"]),
            str(entry["cuda"]),
            str(entry["min_driver"]),
            tuple(entry["gpu_code"]),
            tuple(entry.get("gpu_code_arm64", ())),
        )

    def usable_images(self, engine: str) -> list[Image]:
        """The engine's catalogued images that are not blocked and whose options are recorded, newest first."""
        usable = [
            self._image(key, entry["reference"], entry, engine)
            for key, entry in self.images["images"].items()
            if entry["engine"] == engine
            and not entry.get("blocked")
            and (engine, str(entry["engine_version"])) in self.flags
        ]
        return sorted(usable, key=lambda image: version_tuple(image.engine_version), reverse=True)

    def min_driver(self, cuda: str) -> str:
        known = self.drivers["cuda_min_driver"]
        if cuda not in known:
            raise PlanError(
                f"CUDA {cuda} is not in catalog/drivers.yml", key="image", value=cuda, allowed=", ".join(known)
            )
        return str(known[cuda]["min_driver"])

    def engine_flags(self, image: Image) -> Mapping[str, Any]:
        """The recording of the image's engine version."""
        recorded = self.flags.get((image.engine, image.engine_version))
        if recorded is None:
            versions = sorted(version for engine, version in self.flags if engine == image.engine)
            raise PlanError(
                f"the options of {image.engine} {image.engine_version} are not recorded",
                key="image",
                value=image.key,
                allowed=f"images with {image.engine} {', '.join(versions)}",
                remedies=[f"record them: tests/tools/record_engine_flags.py {image.engine} {image.engine_version}"],
            )
        return recorded

    def overhead(self, *path: str) -> Any:
        value: Any = self.overheads
        for step in path:
            value = value[step]
        return value


def version_tuple(version: str) -> tuple[int, ...]:
    """``0.5.10.post1`` as (0, 5, 10, 1): enough to compare releases of one engine."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
