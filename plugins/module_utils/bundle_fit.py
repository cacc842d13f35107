"""Whether a bundle has what a host needs, and what the host takes of it. Control node only; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from . import bundle_manifest, image_decisions
from .catalog_view import Catalog
from .image_reference import parse
from .model_archive import place
from .package_set import parse_wanted
from .plan_error import PlanError

HOW = "Make the bundle again with this inventory (playbooks/bundle.yml)"


def needs(services: Any, catalog: Catalog, also: Iterable[str] = ()) -> dict[str, Any]:
    """{images, models} that declared services need, without a plan: GPUs and memory don't matter here.

    An image is {reference, digest}; a model {name, revision, reference}, `reference` being the image whose
    huggingface_hub downloads it. Models in directories of the host are left out. PlanError for what is not declared
    well; the planner says more about it.
    """
    images: dict[str, dict[str, str]] = {}
    models: dict[tuple[str, str], dict[str, str]] = {}
    for service in services:
        if not isinstance(service, Mapping) or service.get("engine") not in catalog.profiles["engines"]:
            raise PlanError("is not a service with an engine", key="serving_services", value=service)
        engine = service["engine"]
        declared = service.get("image") or catalog.engine(engine)["default_image"]
        image = catalog.image(declared, engine)
        name = parse(image.reference)
        if name.digest:
            raise PlanError(
                "names its image by digest alone, and an archive keeps no digest: name it by a tag, and the bundle "
                "locks its content",
                service=str(service.get("name", "")),
                key="image",
                value=image.reference,
            )
        reference = image_decisions.lock_key(name)
        images[reference] = {"reference": reference}
        model = service.get("model")
        model = model.get("name") if isinstance(model, Mapping) else model
        if isinstance(model, str) and not model.startswith(("/", "./", "../", "~")):
            revision = str(service.get("revision") or "main")
            models.setdefault((model, revision), {"name": model, "revision": revision, "reference": reference})
    for text in also:
        reference = image_decisions.lock_key(parse(text))
        images[reference] = {"reference": reference}
    return {"images": list(images.values()), "models": list(models.values())}


def system_name(system: str, facts: Mapping[str, Any]) -> str:
    return f"{system}-{facts['os']['deb_architecture']}"


def lacking(
    manifest: Mapping[str, Any],
    system: str,
    facts: Mapping[str, Any],
    wishes: Mapping[str, Sequence[Any]],
    needed: Mapping[str, Any],
    locks: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """What this host needs and the bundle has not, one sentence each.

    `system` as system_name gives it; `wishes`: packages by role, as apt_package_set takes them; `needed`: of `needs`.
    """
    problems = []
    architecture = facts["os"]["deb_architecture"]
    if system not in manifest["systems"]:
        there = ", ".join(manifest["systems"]) or "none"
        problems.append(f"It has packages for {there}, and this host is {system}.")
    else:
        problems += _lacking_packages(manifest["systems"][system], facts, wishes)
    images = manifest["images"].get(architecture, {})
    for image in needed["images"]:
        reference = image["reference"]
        lock = locks.get(reference, {})
        if reference not in images:
            problems.append(f"It has no image {reference} for {architecture}; it has {_names(images)}.")
        elif lock.get("digest") and images[reference]["digest"] and lock["digest"] != images[reference]["digest"]:
            problems.append(
                f"Its {reference} is {images[reference]['digest']}, and the inventory locks {lock['digest']} "
                "(serving_image_locks)."
            )
    there = {(model["name"], model["revision"]) for model in manifest["models"]}
    for model in needed["models"]:
        if (model["name"], model["revision"]) not in there:
            problems.append(
                f"It has no model {model['name']} ({model['revision']}); it has {_names(name for name, _ in there)}."
            )
    return problems


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"


def _lacking_packages(
    system: Mapping[str, Any], facts: Mapping[str, Any], wishes: Mapping[str, Sequence[Any]]
) -> list[str]:
    found = []
    for role, packages in wishes.items():
        for package in parse_wanted(packages):
            versions = system["packages"].get(package.name, [])
            installed = facts["packages"].get(package.name)
            if (installed and package.accepts(installed)) or any(map(package.accepts, versions)):
                continue
            wanted = f"{package.name} {package.version}".rstrip()
            if fnmatchcase(package.name, "linux-*") and facts["kernel"]["release"] in package.name:
                found.append(
                    f"It has no {wanted}: it was made for the kernels {_names(system['kernels'])}, and this host runs "
                    f"{facts['kernel']['release']}. Add that to serving_bundle_kernels."
                )
            else:
                found.append(f"It has no {wanted} for the role {role} (it has {', '.join(versions) or 'none'}).")
    return found


def groups(
    manifest: Mapping[str, Any], system: str, architecture: str, needed: Mapping[str, Any], volume: str
) -> list[dict[str, Any]]:
    """What bundle_files brings to a host: packages, keys and wheels, the images, the models."""
    found: list[dict[str, Any]] = [
        {"files": bundle_manifest.below(manifest, f"packages/{system}", f"wheels/{system}")},
    ]
    images = manifest["images"].get(architecture, {})
    for image in needed["images"]:
        entry = images[image["reference"]]
        found.append(
            {
                "files": bundle_manifest.below(manifest, entry["archive"]),
                "image": {"reference": image["reference"], "id": entry["id"]},
            }
        )
    for model in needed["models"]:
        found.append(
            {
                "files": bundle_manifest.below(manifest, f"models/{place(model['name'], model['revision'])}"),
                "model": {"name": model["name"], "revision": model["revision"], "volume": volume},
            }
        )
    return found


def apt_source(sources: Sequence[Mapping[str, Any]], directory: str) -> str:
    """The deb822 text by which a host uses the distribution's part of a bundle, which lies in `directory` there."""
    blocks = []
    for source in sources:
        flat = not source["components"]
        key = source["signed_by"]
        lines = [
            "Types: deb",
            f"URIs: file:{directory}/{source['directory']}",
            f"Suites: {source['suite'].rstrip('/') + '/' if flat else source['suite']}",
            *([] if flat else [f"Components: {' '.join(source['components'])}"]),
            *([f"Architectures: {source['architecture']}"] if source["architecture"] else []),
            # Its release file was true when the bundle was made, and the manifest holds its content.
            "Check-Valid-Until: no",
            "By-Hash: no",
            "Languages: none",
            *([f"Signed-By: {key if key.startswith('/') else f'{directory}/{key}'}"] if key else []),
        ]
        blocks.append("\n".join(lines) + "\n")
    return "# Written by blackwell.serving: the distribution's part of the bundle.\n" + "\n".join(blocks)


def loaded_images(
    manifest: Mapping[str, Any], architecture: str, needed: Mapping[str, Any], directory: str
) -> dict[str, Any]:
    """{archives, locks} for engine_image_archives and serving_image_locks."""
    images = manifest["images"].get(architecture, {})
    entries = {image["reference"]: images[image["reference"]] for image in needed["images"]}
    return {
        "archives": {reference: {"once": f"{directory}/{entry['archive']}"} for reference, entry in entries.items()},
        "locks": {reference: {"id": entry["id"]} for reference, entry in entries.items()},
    }
