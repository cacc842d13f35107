"""The pages in a real Chromium, driven through its DevTools pipe: widths, contrast, requests, console, printing."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import fleet_status
from ansible_collections.blackwell.serving.plugins.module_utils.benchmark_results import record
from ansible_collections.blackwell.serving.plugins.module_utils.fleet_index import FleetHost, index_view
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render, render_index
from ansible_collections.blackwell.serving.plugins.plugin_utils.status_page import status_page

SERVICES = [
    {"name": "tinyllama", "engine": "sglang", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "port": 30001},
    {
        "name": "a-long-name-of-a-service-for-a-group-that-likes-long-names",
        "engine": "vllm",
        "model": "Qwen/Qwen2.5-3B-Instruct",
        "port": 30002,
        "environment": {"A_VERY_LONG_VARIABLE_NAME": "a-value-without-any-blank-" * 6},
    },
    {"name": "wide", "engine": "sglang", "model": "01-ai/Yi-6B", "port": 30003, "tensor_parallel": 2},
]
GPUS = ["rtx_5090", {"gpu": "rtx_5090", "measured_total_gib": 31.36, "measured_free_gib": 28.5}]
WIDTHS = (320, 360, 768, 1280)
SCHEMES = ("light", "dark")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

# Contrast of every visible piece of text with the colour under it; texts on a bar of the map with that bar's colour.
FAINT_TEXTS = """(() => {
  const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = rgb(colour).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opaque = colour => !/, 0\\)$|transparent|none|url/.test(colour);
  const under = element => {
    const bar = element.closest('svg') && element.previousElementSibling;
    if (/^in-/.test(element.getAttribute('class') || '') && bar.tagName === 'rect') return getComputedStyle(bar).fill;
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (opaque(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = [];
  let seen = 0;
  for (const element of document.body.querySelectorAll('*')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || element.tagName === 'title' || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const text = element.closest('svg') ? style.fill : style.color;
    const [high, low] = [luminance(text), luminance(under(element))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    seen += 1;
    if (ratio < 4.5) faint.push(`${element.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return {seen, faint};
})()"""

# What is cut off at the right without a box of its own that scrolls.
CUT_OFF = """(() => {
  const width = document.documentElement.clientWidth;
  return [...document.body.querySelectorAll('*')]
    .filter(e => !e.closest('.scroll') && !e.closest('pre') && e.getClientRects().length)
    .filter(e => e.getBoundingClientRect().right > width + 0.5 || e.getBoundingClientRect().left < -0.5)
    .map(e => `${e.tagName} ${e.textContent.trim().slice(0, 30)}`);
})()"""


class Browser:
    """A headless Chromium with one page, spoken to over ``--remote-debugging-pipe``.

    ``events`` holds what it reported (network, console, log) since the last ``open``.
    """

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        def connect() -> None:
            os.dup2(commands, 200)
            os.dup2(answers, 201)
            os.dup2(200, 3)
            os.dup2(201, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._buffer = b""
        self._session = ""
        # A browser that hangs is ended, which ends the wait for its answer.
        self._watchdog = threading.Timer(120, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command; raises RuntimeError for its error or when Chromium has gone."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._answers, 1 << 16)
            if not chunk:
                raise RuntimeError("Chromium has ended")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path, width: int, height: int = 800, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 700
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def methods(self, *prefixes: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method", "").startswith(prefixes)]

    def close(self) -> None:
        self._watchdog.cancel()
        try:
            self._session = ""
            self.call("Browser.close")
            self._process.wait(timeout=10)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(chromium, tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = plan_host("two-gpus", {"gpus": GPUS, "services": SERVICES}, load_catalog())
    plan["warnings"].append("wide: a warning with one-word-that-is-wider-than-a-phone-" + "x" * 60)
    path = tmp_path_factory.mktemp("page") / "report.html"
    now, before = (measured(plan, speed) for speed in (1234.5, 1000.0))
    benchmark = {"measured": now, "before": {**before, "driver": "575.51.03", "date": "2026-11-24T00:00:00Z"}}
    path.write_text(render(plan, benchmark)["report.html"], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve hosts: one does not fit, one is declared wrongly, one has no plan."""
    fits = plan_host("fits", {"gpus": GPUS, "services": SERVICES}, load_catalog())
    refused = plan_host("refused", {"gpus": ["rtx_5080"], "services": SERVICES[:2] * 2}, load_catalog())
    short = plan_host("short", {"gpus": ["rtx_5080", "rtx_5080"], "services": SERVICES}, load_catalog())
    assert short["verdict"] == "does_not_fit"
    plans = [fits] * 9 + [refused, short, None]
    hosts = [
        FleetHost(f"a-host-with-a-long-name-{number}", ("berlin", "rtx_5090"), plan)
        for number, plan in enumerate(plans)
    ]
    path = tmp_path_factory.mktemp("index") / "index.html"
    path.write_text(render_index(index_view(hosts)), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["page", "index"])
def any_page(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def measured(plan: dict[str, Any], speed: float) -> dict[str, Any]:
    """A record of a benchmark, made up: the first service fails, the others are as fast as that."""
    facts = {"gpus": [{"name": "NVIDIA GeForce RTX 5090"}], "driver": {"loaded": {"version": "580.95.05"}}}
    generator = {"name": "sglang.bench_serving", "version": "0.5.19", "image": plan["services"][0]["image"]}
    figures = dict.fromkeys(("tokens_per_s", "first_token_ms", "first_token_p99_ms", "between_tokens_ms"), speed)
    runs = [
        {"service": service["name"], "load": {"concurrency": 32}, "medians": {**figures, "failed": 3, "requests": 128}}
        for service in plan["services"]
    ]
    runs[0] = {
        "service": plan["services"][0]["name"],
        "load": {"concurrency": 1},
        "problem": "it stopped under this load",
    }
    return record(plan["host"], "2026-11-25T01:02:03Z", facts, plan, generator, runs)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_no_wider_than_the_screen(browser: Browser, any_page: Path, width: int, scheme: str) -> None:
    browser.open(any_page, width, scheme=scheme)
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(CUT_OFF) == []


def test_wide_tables_and_commands_scroll_inside_their_own_box(browser: Browser, page: Path) -> None:
    browser.open(page, 360)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.scroll, pre')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => [getComputedStyle(e).overflowX, e.tabIndex, !!e.getAttribute('aria-label')])"
    )
    assert boxes, "nothing is wider than a phone: this test shows nothing"
    assert all(box == ["auto", 0, True] for box in boxes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_asks_for_nothing_and_logs_nothing(browser: Browser, any_page: Path, scheme: str) -> None:
    browser.open(any_page, 360, scheme=scheme)
    browser.evaluate("1")
    requests = [event["params"]["request"]["url"] for event in browser.methods("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [any_page.as_uri()]
    assert browser.methods("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [360, 1280])
def test_every_text_stands_out_from_what_is_under_it(browser: Browser, any_page: Path, width: int, scheme: str) -> None:
    browser.open(any_page, width, scheme=scheme)
    contrast = browser.evaluate(FAINT_TEXTS)
    assert contrast["seen"] > 100
    assert contrast["faint"] == []


def test_dark_and_light_differ(browser: Browser, page: Path) -> None:
    backgrounds = set()
    for scheme in SCHEMES:
        browser.open(page, 360, scheme=scheme)
        backgrounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_texts_of_the_map_do_not_run_into_each_other(browser: Browser, page: Path) -> None:
    overlaps = """[...document.querySelectorAll('svg.map')].flatMap(map => {
      const texts = [...map.querySelectorAll('text')].filter(e => e.getClientRects().length)
        .map(e => [e.textContent, e.getBoundingClientRect()]);
      return texts.flatMap(([a, p], i) => texts.slice(i + 1)
        .filter(([b, q]) => p.left < q.right && q.left < p.right && p.top < q.bottom - 2 && q.top < p.bottom - 2)
        .map(([b]) => `${a} / ${b}`));
    })"""
    for width in WIDTHS:
        browser.open(page, width)
        assert browser.evaluate(overlaps) == []


def test_each_drawing_is_one_image_with_a_text_for_screen_readers(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    images = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") in ("image", "img")]
    assert len(images) == len(GPUS) + 1
    assert "tinyllama" in " ".join(images)
    assert images[-1].startswith("Tokens per second.")
    assert "28.5" not in images[0]


def test_on_paper_it_is_light_and_nothing_is_cut_off(browser: Browser, page: Path) -> None:
    browser.open(page, 700, scheme="dark")
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page').trim()") == "#fff"
    cut = browser.evaluate(
        "[...document.querySelectorAll('.scroll, pre')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.textContent.trim().slice(0, 40))"
    )
    browser.call("Emulation.setEmulatedMedia", media="")
    assert cut == []


def test_hosts_are_found_and_sorted(browser: Browser, index: Path) -> None:
    def shown(column: int) -> list[str]:
        return browser.evaluate(
            "[...document.querySelectorAll('#table tbody tr')].filter(row => !row.hidden)"
            f".map(row => row.cells[{column}].textContent)"
        )

    browser.open(index, 1280)
    assert len(shown(0)) == 12
    browser.evaluate(
        "document.getElementById('find').value = 'NOT berlin';"
        "document.getElementById('find').dispatchEvent(new Event('input'))"
    )
    assert sorted(shown(1)) == ["does not fit", "not planned"]
    assert browser.evaluate("document.getElementById('found').value") == "2 of 12"

    browser.open(index, 1280)
    for direction, first in (("ascending", min), ("descending", max)):
        browser.evaluate("document.querySelectorAll('#table thead button')[7].click() || true")
        free = [float(text) for text in shown(7) if text]
        assert len(set(free)) > 1
        assert free[0] == first(free)
        heading = "document.querySelectorAll('#table thead th')[7]"
        assert browser.evaluate(f"{heading}.getAttribute('aria-sort')") == direction


@pytest.fixture(scope="module")
def status(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's status: a host of each state, made up."""
    plan = plan_host("two-gpus", {"gpus": GPUS, "services": SERVICES}, load_catalog())
    services = [
        {
            **{key: service[key] for key in ("name", "engine", "engine_version", "image", "gpus")},
            "state": "running",
            "health": "healthy",
            "restarts": 0,
            "started": "2026-11-25T09:00:00Z",
            "kv_tokens": None,
            "planned_kv_tokens": service["kv_tokens"],
            "used_gib": 4.2,
            "planned_gib": 5.0,
            "digest": "sha256:" + "0" * 64,
        }
        for service in plan["services"]
    ]
    gpus = [{"index": 0, "name": "NVIDIA GeForce RTX 5090", "total_gib": 31.84, "used_gib": 20.0, "planned_gib": 30.4}]
    views = []
    for state in fleet_status.STATES:
        view = fleet_status.host_view("a-host-with-a-rather-long-name." + state.replace(" ", "-"), None, None, "gone")
        known = {"state": state, "gpus": gpus, "services": services, "services_up": 3, "changes": ["qwen: start"]}
        views.append(view if state == fleet_status.UNKNOWN else view | known)
    path = tmp_path_factory.mktemp("status") / "status.html"
    path.write_text(status_page(fleet_status.fleet_view(views, "2026-11-25T12:00:00Z")), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_status_fits_the_screen_and_can_be_read(browser: Browser, status: Path, width: int, scheme: str) -> None:
    browser.open(status, width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(CUT_OFF) == []
    contrast = browser.evaluate(FAINT_TEXTS)
    assert contrast["seen"] > 50
    assert contrast["faint"] == []
    requests = [event["params"]["request"]["url"] for event in browser.methods("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [status.as_uri()]
    assert browser.methods("Log.entryAdded", "Runtime.exceptionThrown") == []
