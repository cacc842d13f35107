"""index.html: what the page of all hosts says, worked out from their plans. The template prints it. Sizes in GiB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .node_groups import answers_requests

VERDICTS = {"fits": "fits", "does_not_fit": "does not fit", "invalid": "invalid"}
NOT_PLANNED = "not planned"
SHOWN_REMEDIES = 3
SHOWN_NAMES = 5


class FleetHost(NamedTuple):
    """A host of the inventory, the groups that it is in, and its plan where there is one."""

    name: str
    groups: tuple[str, ...]
    plan: Mapping[str, Any] | None

    @property
    def verdict(self) -> str:
        return VERDICTS[self.plan["verdict"]] if self.plan else NOT_PLANNED

    @property
    def gpus(self) -> Sequence[Mapping[str, Any]]:
        return self.plan["gpus"] if self.plan else ()

    @property
    def services(self) -> Sequence[Mapping[str, Any]]:
        return self.plan["services"] if self.plan else ()


def index_view(hosts: Sequence[FleetHost]) -> dict[str, Any]:
    """Plain dictionaries, lists and strings for ``templates/index.html.j2``, hosts in the order given."""
    return {
        "total": _total("all hosts", hosts),
        "kinds": [_total(kind, _having(hosts, kind), kind) for kind in _kinds(hosts)],
        "groups": [
            _total(group, [host for host in hosts if group in host.groups])
            for group in sorted({group for host in hosts for group in host.groups})
        ],
        "refused": [_refusal(host) for host in hosts if host.verdict != "fits"],
        "hosts": [_row(host) for host in hosts],
    }


def index_text(view: Mapping[str, Any], page: str) -> str:
    """The same in a few lines, for the terminal."""
    total = view["total"]
    lines = [f"{_count(total['hosts'], 'host')}: {_verdicts(total)}"]
    if total["fits"]:
        lines[0] += (
            f"; {_count(total['services'], 'service')} on {_count(total['gpus'], 'GPU')}, "
            f"{total['planned']} of {total['visible']} GiB planned"
        )
    for verdict in (*VERDICTS.values(), NOT_PLANNED):
        names = [entry["name"] for entry in view["refused"] if entry["verdict"] == verdict]
        if names:
            more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
            lines.append(f"{verdict}: {', '.join(names[:SHOWN_NAMES])}{more}")
    return "\n".join([*lines, f"All hosts on one page: {page}"]) + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _verdicts(total: Mapping[str, Any]) -> str:
    words = {"fits": "fit", "does_not_fit": "do not fit", "invalid": "invalid", "unplanned": "not planned"}
    return ", ".join(f"{total[key]:,} {word}" for key, word in words.items() if total[key] or key == "fits")


def _kinds(hosts: Iterable[FleetHost]) -> list[str]:
    return sorted({gpu["product"] for host in hosts for gpu in host.gpus})


def _having(hosts: Iterable[FleetHost], kind: str) -> list[FleetHost]:
    return [host for host in hosts if any(gpu["product"] == kind for gpu in host.gpus)]


def _total(name: str, hosts: Sequence[FleetHost], kind: str | None = None) -> dict[str, Any]:
    """Sums over hosts, or over their GPUs of one kind. Memory is that of hosts whose plan fits; a service on
    several hosts counts once."""
    verdicts = Counter(host.verdict for host in hosts)
    fitting = [host for host in hosts if host.verdict == "fits"]
    gpus = [gpu for host in fitting for gpu in host.gpus if kind in (None, gpu["product"])]
    services = 0
    for host in fitting:
        counted = {gpu["index"] for gpu in host.gpus if kind in (None, gpu["product"])}
        services += sum(bool(counted & set(service["gpus"])) for service in host.services if answers_requests(service))
    planned, visible = (sum(gpu[key] for gpu in gpus) for key in ("planned_gib", "cuda_visible_gib"))
    return {
        "name": name,
        "hosts": len(hosts),
        "fits": verdicts["fits"],
        "does_not_fit": verdicts["does not fit"],
        "invalid": verdicts["invalid"],
        "unplanned": verdicts[NOT_PLANNED],
        "services": services,
        "gpus": len(gpus),
        "planned": f"{planned:,.2f}",
        "visible": f"{visible:,.2f}",
        "share": f"{100 * planned / visible:.0f}" if visible else "",
    }


def _short(host: FleetHost) -> float:
    return sum(gpu.get("short_gib", 0) for gpu in host.gpus)


def _refusal(host: FleetHost) -> dict[str, Any]:
    errors = host.plan["errors"] if host.plan else ()
    problems = [{"problem": error["problem"], "remedies": error["remedies"][:SHOWN_REMEDIES]} for error in errors]
    return {"name": host.name, "verdict": host.verdict, "short": f"{_short(host):.2f}", "problems": problems}


def _row(host: FleetHost) -> dict[str, Any]:
    products = Counter(gpu["product"] for gpu in host.gpus)
    fits = host.verdict == "fits"
    planned, visible, free = (
        sum(gpu[key] for gpu in host.gpus) for key in ("planned_gib", "cuda_visible_gib", "free_gib")
    )
    return {
        "name": host.name,
        "groups": ", ".join(host.groups),
        "verdict": host.verdict,
        "page": "report.html" if fits else "plan.json" if host.plan else "",
        "gpus": ", ".join(f"{count} × {product}" if count > 1 else product for product, count in products.items()),
        "services": ", ".join(service["name"] for service in host.services),
        "planned": f"{planned:.2f}" if fits else "",
        "visible": f"{visible:.2f}" if host.gpus else "",
        "free": f"{free:.2f}" if fits else f"-{_short(host):.2f}" if _short(host) else "",
        "share": f"{100 * planned / visible:.0f}" if fits and visible else "",
        "warnings": len(host.plan["warnings"]) if host.plan else 0,
    }
