"""report.html as a reader of the file sees it: parsed, and compared with the plan that it was rendered from."""

import copy
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render

TINYLLAMA = {"name": "tinyllama", "engine": "sglang", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "port": 30001}
QWEN = {"name": "qwen", "engine": "vllm", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30002}
YI = {"name": "yi", "engine": "sglang", "model": "01-ai/Yi-6B", "port": 30003}
BUSY_GPU = {"gpu": "rtx_5090", "measured_total_gib": 31.36, "measured_free_gib": 27.0}
DECLARATIONS = {
    "one GPU": {"gpus": ["rtx_5090"], "services": [TINYLLAMA, QWEN, YI]},
    "tensor parallel over two GPUs, others on one": {
        "gpus": [BUSY_GPU, "rtx_5090"],
        "services": [TINYLLAMA, QWEN, YI | {"tensor_parallel": 2, "environment": {"A": "1 2", "B": "$x"}}],
    },
    "an unused GPU": {"gpus": ["l4", "rtx_5090"], "services": [TINYLLAMA | {"gpus": [0]}]},
    "a model with a state pool": {
        "gpus": ["h200"],
        "services": [QWEN, YI | {"model": "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "context_length": 8192}],
    },
    "much left over": {
        "gpus": ["h200"],
        "services": [TINYLLAMA | {"pinned": {"mem_fraction_static": 0.15, "max_total_tokens": 2048}}],
    },
}
VOID = {"meta", "link", "br", "hr", "img", "input", "source"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    content: list["Element | str"] = field(default_factory=list)

    @property
    def children(self) -> list["Element"]:
        return [node for node in self.content if isinstance(node, Element)]

    def all(self, tag: str, class_name: str = "") -> list["Element"]:
        found = [self] if self.tag == tag and class_name in ["", *self.attributes.get("class", "").split()] else []
        return found + [element for child in self.children for element in child.all(tag, class_name)]

    def one(self, tag: str, class_name: str = "") -> "Element":
        (element,) = self.all(tag, class_name)
        return element

    @property
    def text(self) -> str:
        return "".join(node.text if isinstance(node, Element) else node for node in self.content)


class Page(HTMLParser):
    """A tree of the page; fails on an element that is closed by another's end tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(html)
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(self._open[-1].children[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].content.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].content.append(data)


def page_of(plan: dict[str, Any]) -> Element:
    return Page(render(plan)["report.html"]).root


def planned(declaration: dict[str, Any]) -> dict[str, Any]:
    plan = plan_host("host.example", declaration, load_catalog())
    assert plan["verdict"] == "fits", plan["errors"]
    return plan


@pytest.fixture(params=DECLARATIONS.values(), ids=DECLARATIONS.keys())
def plan(request: pytest.FixtureRequest) -> dict[str, Any]:
    return planned(request.param)


def rectangles(figure: Element, scale: float) -> list[tuple[str, float, float]]:
    """(kind, start, size) in GiB as drawn, where the width of the drawing is ``scale`` GiB."""
    return [
        (
            rect.attributes["class"],
            float(rect.attributes["x"].removesuffix("%")) * scale / 100,
            float(rect.attributes["width"].removesuffix("%")) * scale / 100,
        )
        for rect in figure.one("svg", "map").all("rect")
    ]


def test_the_rectangles_of_each_gpu_add_up_to_the_plan(plan: dict[str, Any]) -> None:
    figures = page_of(plan).all("figure")
    assert len(figures) == len(plan["gpus"])
    for gpu, figure in zip(plan["gpus"], figures, strict=True):
        drawn: dict[str, float] = defaultdict(float)
        for kind, _, size in rectangles(figure, gpu["cuda_visible_gib"]):
            drawn[kind] += size
        left = {kind: drawn.pop(kind, 0.0) for kind in ("foreign", "free", "margin")}
        expected: dict[str, float] = defaultdict(float)
        for service in plan["services"]:
            if gpu["index"] in service["gpus"]:
                for part, size in service["memory"].items():
                    expected[{"tables": "workspaces", "compilation": "activations"}.get(part, part)] += size
        peak = expected.pop("peak", 0.0)
        expected.pop("resident", None)
        assert drawn == pytest.approx({part: size for part, size in expected.items() if size}, rel=0.01, abs=0.001)
        assert sum(drawn.values()) == pytest.approx(peak, rel=0.01)
        assert sum(drawn.values()) == pytest.approx(gpu["planned_gib"], rel=0.01)
        assert left["foreign"] == pytest.approx(gpu["reserved_gib"], rel=0.01)
        assert left["free"] + left["margin"] == pytest.approx(gpu["free_gib"], rel=0.01)
        assert left["margin"] == pytest.approx(min(gpu["margin_gib"], gpu["free_gib"]), rel=0.01)
        assert sum(drawn.values()) + sum(left.values()) == pytest.approx(gpu["cuda_visible_gib"], rel=0.01)


def test_no_two_rectangles_claim_the_same_memory(plan: dict[str, Any]) -> None:
    for gpu, figure in zip(plan["gpus"], page_of(plan).all("figure"), strict=True):
        end = 0.0
        for _, start, size in rectangles(figure, gpu["cuda_visible_gib"]):
            assert start == pytest.approx(end, abs=0.01)
            end = start + size
        assert end == pytest.approx(gpu["cuda_visible_gib"], rel=0.01)


def test_the_legend_names_every_kind_that_is_drawn_and_no_other(plan: dict[str, Any]) -> None:
    for figure in page_of(plan).all("figure"):
        swatches = {path.attributes["class"] for svg in figure.all("svg", "swatch") for path in svg.all("path")}
        assert swatches == {rect.attributes["class"] for rect in figure.one("svg", "map").all("rect")}


def test_each_map_is_told_in_words(plan: dict[str, Any]) -> None:
    for gpu, figure in zip(plan["gpus"], page_of(plan).all("figure"), strict=True):
        attributes = figure.one("svg", "map").attributes
        assert attributes["role"] == "img"
        for service in plan["services"]:
            here = gpu["index"] in service["gpus"]
            assert (f"{service['name']} {service['memory']['peak']:.2f} GiB" in attributes["aria-label"]) is here


def test_commands_pasted_into_a_shell_are_exactly_the_plan(plan: dict[str, Any]) -> None:
    plan["services"][0]["command"].append("--with=blanks 'and' \"quotes\" and $HOME and \\")
    by_order = sorted(plan["services"], key=lambda service: service["start_order"])
    for service, block in zip(by_order, page_of(plan).all("pre", "command"), strict=True):
        shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {block.text}"], capture_output=True, text=True, check=True)
        assert shell.stdout.split("\0")[:-1] == [*service["entrypoint"], *service["command"]]
        assert len(block.text.splitlines()) == 1 + len(service["command"])


def test_environment_image_and_address_of_each_service_are_shown(plan: dict[str, Any]) -> None:
    by_order = sorted(plan["services"], key=lambda service: service["start_order"])
    for service, article in zip(by_order, page_of(plan).all("article"), strict=True):
        assert service["image"] in article.text
        assert f"{service['bind_address']}:{service['port']}" in article.text
        shown = [line for block in article.all("pre", "environment") for line in block.text.splitlines()]
        assert shown == [f"{name}={value}" for name, value in service["environment"].items()]


def test_the_start_order_says_what_each_service_sees_and_is_told(plan: dict[str, Any]) -> None:
    steps = page_of(plan).one("ol", "steps").all("li")
    for order, step in enumerate(steps, 1):
        (service,) = [entry for entry in plan["services"] if entry["start_order"] == order]
        assert step.one("h3").text == service["name"]
        assert f"{service['free_before_gib']:.2f} GiB" in step.text
        assert f"{service['free_before_restart_gib']:.2f} GiB" in step.text
        assert step.one("code").text == f"{service['fraction']['flag']}={service['fraction']['value']:g}"
        scale = min(gpu["cuda_visible_gib"] for gpu in plan["gpus"] if gpu["index"] in service["gpus"])
        bars = [float(line.attributes["x2"].removesuffix("%")) * scale / 100 for line in step.all("line", "seen")]
        assert bars == pytest.approx([service["free_before_gib"], service["free_before_restart_gib"]], rel=0.01)


def test_the_table_has_one_row_for_each_service(plan: dict[str, Any]) -> None:
    table = page_of(plan).one("table", "services").one("tbody")
    rows = [[cell.text for cell in row.children if cell.tag in ("th", "td")] for row in table.all("tr")]
    assert len(rows) == len(plan["services"])
    for service in plan["services"]:
        (row,) = [row for row in rows if row[0] == service["name"]]
        assert service["model"] in row
        assert str(service["port"]) in row
        assert f"{service['kv_tokens']:,}" in row
        assert f"{service['engine']} {service['engine_version']}" in row


def test_warnings_are_listed_and_absent_where_there_are_none() -> None:
    plan = planned(DECLARATIONS["much left over"])
    assert plan["warnings"]
    shown = page_of(plan).one("section", "warnings")
    assert [item.text for item in shown.all("li")] == plan["warnings"]
    plan["warnings"] = []
    assert page_of(plan).all("section", "warnings") == []


def _replaced(value: Any, text: str) -> Any:
    """``value`` with every string in it followed by ``text``."""
    if isinstance(value, dict):
        return {key: _replaced(entry, text) for key, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, text) for entry in value]
    return value + text if isinstance(value, str) else value


def test_whatever_the_plan_says_shows_as_text(plan: dict[str, Any]) -> None:
    attack = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    hostile = _replaced(copy.deepcopy(plan), attack)
    hostile["verdict"] = "fits"
    for original, service in zip(plan["services"], hostile["services"], strict=True):
        service["engine"] = original["engine"]
        service["environment"] = {"NAME" + attack: "value" + attack}
    page, clean = page_of(hostile), page_of(plan)
    assert page.all("script") == page.all("img") == []
    # Blocks of environment variables, which the plan may lack, are all that is added.
    for tag in ("svg", "rect", "tr", "li", "article", "figure"):
        assert len(page.all(tag)) == len(clean.all(tag))
    assert not any(name.startswith("on") for element in _elements(page) for name in element.attributes)
    for service in hostile["services"]:
        assert service["model"] in page.one("table", "services").text
        assert f"NAME{attack}=value{attack}" in page.text
    assert hostile["host"] in page.one("h1").text
    assert hostile["host"] in page.one("head").one("title").text


def test_the_page_refers_to_nothing_outside_itself(plan: dict[str, Any]) -> None:
    html = render(plan)["report.html"]
    page = Page(html).root
    for tag in ("script", "img", "iframe", "object", "embed", "audio", "video", "base", "form", "a", "use", "image"):
        assert page.all(tag) == []
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]
    style = page.one("style").text
    assert "@import" not in style
    assert "@font-face" not in style
    targets = re.findall(r"url\(([^)]*)\)", html)
    patterns = {f"#{pattern.attributes['id']}" for pattern in page.all("pattern")}
    assert set(targets) == patterns


def test_the_page_is_set_up_for_readers_and_machines(plan: dict[str, Any]) -> None:
    page = page_of(plan)
    assert page.one("html").attributes["lang"] == "en"
    assert plan["host"] in page.one("head").one("title").text
    assert page.one("h1").text == plan["host"]
    ids = [value for element in _elements(page) for name, value in element.attributes.items() if name == "id"]
    assert len(ids) == len(set(ids))
    named_by = [element.attributes.get("aria-labelledby") for element in page.all("section")]
    assert all(name in ids for name in named_by)
    headings = [int(element.tag[1]) for element in _elements(page) if re.fullmatch("h[1-6]", element.tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all(box.attributes.get("aria-label") for box in page.all("pre") + page.all("div", "scroll"))


def _elements(root: Element) -> list[Element]:
    return [root, *(element for child in root.children for element in _elements(child))]


def test_the_same_plan_gives_the_same_page(plan: dict[str, Any]) -> None:
    shuffled = {key: plan[key] for key in reversed(list(plan))}
    assert render(shuffled)["report.html"] == render(plan)["report.html"]
