"""The module with a fake nvidia-ctk, nvidia-smi and systemctl on PATH; the specifications are made up, too."""

import json
import os
import sys
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.blackwell.serving.plugins.modules import nvidia_cdi_spec

UUID = "GPU-5d4c2c08-0b1d-4c6a-9f3e-2f3d0a6a9f10"
FAKES = {
    "nvidia-ctk": """
output = Path(next(word for word in sys.argv if word.startswith("--output=")).partition("=")[2])
output.write_text((home / "true-spec").read_text())
""",
    "nvidia-smi": """
print((home / "gpus").read_text())
""",
    "systemctl": """
words = [word for word in sys.argv[1:] if word != "--no-reload"]
verb, unit = words
state = home / "units" / unit
if not state.exists():
    sys.exit(1)
if verb == "is-enabled":
    print(state.read_text().split()[0])
elif verb == "is-active":
    sys.exit(0 if "active" in state.read_text().split() else 3)
elif verb != "cat":
    with open(home / "calls", "a") as calls:
        print(*sys.argv[1:], file=calls)
    if verb == "enable":
        state.write_text(state.read_text().replace("disabled", "enabled"))
    if verb == "start":
        state.write_text(state.read_text() + " active")
    if verb == "restart" and (home / "true-spec").exists():
        (home / "run/nvidia.yaml").write_text((home / "true-spec").read_text())
""",
}


def spec(driver: str = "580.178.04", devices: tuple[str, ...] = ("0", UUID, "all")) -> str:
    lines = "".join(f"- name: {name!r}\n  containerEdits: {{}}\n" for name in devices)
    mount = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{driver}"
    return (
        f"cdiVersion: 0.7.0\nkind: nvidia.com/gpu\ndevices:\n{lines}"
        f"containerEdits:\n  mounts:\n  - hostPath: {mount}\n    containerPath: {mount}\n"
    )


class Host:
    def __init__(self, home: Path, capsys) -> None:
        self.home, self.capsys = home, capsys
        for name in ("etc", "run", "units"):
            (home / name).mkdir()
        (home / "true-spec").write_text(spec())
        (home / "gpus").write_text(f"0, {UUID}, Disabled")
        self.unit("nvidia-cdi-refresh.path", "enabled active")
        self.unit("nvidia-cdi-refresh.service", "enabled")

    def unit(self, name: str, state: str) -> None:
        (self.home / "units" / name).write_text(state)

    @property
    def calls(self) -> list[str]:
        calls = self.home / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def run(self, check: bool = False) -> dict:
        arguments = {
            "path": str(self.home / "run/nvidia.yaml"),
            "directories": [str(self.home / "etc"), str(self.home / "run")],
            "_ansible_check_mode": check,
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            nvidia_cdi_spec.main()
        return json.loads(self.capsys.readouterr().out)


@pytest.fixture
def host(tmp_path: Path, capsys, monkeypatch) -> Host:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in FAKES.items():
        head = f"#!{sys.executable} -S\nimport sys\nfrom pathlib import Path\nhome = Path({str(tmp_path)!r})\n"
        (tools / name).write_text(head + body)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(nvidia_cdi_spec, "PROC_VERSION", tmp_path / "version")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.178.04  Release Build\n"
    )
    return Host(tmp_path, capsys)


def test_a_true_specification_is_left_alone(host: Host):
    (host.home / "run/nvidia.yaml").write_text(spec())
    result = host.run()
    assert (result["changed"], result["devices"], result["driver_version"]) == (False, ["0", UUID, "all"], "580.178.04")
    assert host.calls == []


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (None, "no specification"),
        (spec(driver="575.64.05"), "575.64.05"),
        (spec(devices=("all",)), UUID),
        (spec(devices=("0", UUID)), "device all"),
        ("}{", "no specification"),
    ],
)
def test_a_missing_or_stale_specification_is_written_anew(host: Host, there: str | None, problem: str):
    if there:
        (host.home / "run/nvidia.yaml").write_text(there)
    predicted = host.run(check=True)
    assert predicted["changed"]
    assert problem in " ".join(predicted["problems"])
    assert host.calls == []
    assert host.run()["changed"]
    assert (host.home / "run/nvidia.yaml").read_text() == spec()
    assert host.run()["changed"] is False


def test_units_are_enabled_without_a_reload_of_systemd(host: Host):
    (host.home / "run/nvidia.yaml").write_text(spec())
    host.unit("nvidia-cdi-refresh.path", "disabled")
    assert host.run(check=True)["enabled"] == ["nvidia-cdi-refresh.path"]
    assert host.run()["enabled"] == ["nvidia-cdi-refresh.path"]
    assert host.calls == [f"--no-reload {verb} nvidia-cdi-refresh.path" for verb in ("enable", "start")]
    assert host.run()["changed"] is False


def test_a_masked_unit_stays_masked(host: Host):
    (host.home / "run/nvidia.yaml").write_text(spec())
    host.unit("nvidia-cdi-refresh.path", "masked")
    assert host.run()["changed"] is False


def test_without_units_the_specification_is_written_directly(host: Host):
    for unit in (host.home / "units").iterdir():
        unit.unlink()
    assert host.run()["changed"]
    assert (host.home / "run/nvidia.yaml").read_text() == spec()


def test_a_specification_that_stays_wrong_is_an_error(host: Host):
    (host.home / "true-spec").write_text(spec(driver="575.64.05"))
    result = host.run()
    assert result["failed"]
    assert "575.64.05" in result["msg"]


def test_a_stale_file_that_another_one_overrides_is_named(host: Host):
    (host.home / "etc/nvidia.yaml").write_text(spec(driver="575.64.05"))
    (host.home / "run/nvidia.yaml").write_text(spec())
    result = host.run()
    assert result["changed"] is False
    assert str(host.home / "etc/nvidia.yaml") in json.dumps(result["warnings"])


def test_a_gpu_that_is_split_need_not_be_there_as_a_whole(host: Host):
    (host.home / "gpus").write_text(f"0, {UUID}, Enabled")
    (host.home / "run/nvidia.yaml").write_text(spec(devices=("0:0", "all")))
    assert host.run()["changed"] is False


def test_without_a_driver_check_mode_foretells_nothing(host: Host):
    (host.home / "version").unlink()
    assert host.run(check=True)["changed"] is False
    assert "not loaded" in host.run()["msg"]


def test_without_the_toolkit_check_mode_foretells_nothing(host: Host, monkeypatch):
    (host.home / "bin/nvidia-ctk").unlink()
    assert host.run(check=True)["changed"] is False
    assert host.run()["failed"]
