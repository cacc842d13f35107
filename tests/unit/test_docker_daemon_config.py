"""The module against a fake dockerd, systemctl and docker on PATH; a real dockerd is in the molecule scenarios."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.blackwell.serving.plugins.modules import docker_daemon_config

# What the fake daemon has in force is in running.json, what it was told in calls; files named fail-* make it fail.
FAKES = {
    "dockerd": """
config = json.load(open(sys.argv[sys.argv.index("--config-file") + 1]))
if (home / "old").exists():
    sys.exit("unknown flag: --validate")
unknown = sorted(set(config) - set((home / "known").read_text().split()))
if unknown:
    sys.exit("the following directives don't match any configuration option: " + ", ".join(unknown))
conflicts = [key for key in config if f"--{key}" in " ".join(sys.argv[1:-2])]
if conflicts:
    sys.exit("the following directives are specified both as a flag and in the configuration file: " + conflicts[0])
""",
    "systemctl": """
verb = next(word for word in sys.argv[1:] if not word.startswith("-"))
if verb == "is-active":
    sys.exit(0 if (home / "running.json").exists() else 3)
if verb == "show":
    print((home / "pid").read_text() if (home / "pid").exists() else 0)
    sys.exit()
with open(home / "calls", "a") as calls:
    print(verb, file=calls)
text = (home / "daemon.json").read_text() if (home / "daemon.json").exists() else "{}"
if verb == "restart":
    if "fail-restart" in text:
        (home / "running.json").unlink(missing_ok=True)
        sys.exit("Job for docker.service failed")
    (home / "running.json").write_text(text)
if verb == "reload" and not (home / "fail-reload").exists():
    running, wanted = json.loads((home / "running.json").read_text()), json.loads(text)
    for key in ("live-restore", "debug", "runtimes", "labels", "registry-mirrors", "default-runtime"):
        if key in wanted:
            running[key] = wanted[key]
    (home / "running.json").write_text(json.dumps(running))
""",
    "journalctl": "",
    "docker": """
if not (home / "running.json").exists():
    sys.exit("Cannot connect to the Docker daemon")
config = json.loads((home / "running.json").read_text())
if sys.argv[1] == "info":
    cdi = config.get("features", {}).get("cdi", False)
    runtimes = {"runc": {"path": "runc"}} | config.get("runtimes", {})
    print(json.dumps({
        "ServerVersion": "26.1.5",
        "Debug": config.get("debug", False),
        "LiveRestoreEnabled": config.get("live-restore", False),
        "LoggingDriver": config.get("log-driver", "json-file"),
        "DefaultRuntime": config.get("default-runtime", "runc"),
        "Labels": config.get("labels", []),
        "Runtimes": runtimes,
        "CDISpecDirs": config.get("cdi-spec-dirs", ["/etc/cdi"]) if cdi else None,
        "RegistryConfig": {"Mirrors": [url + "/" for url in config.get("registry-mirrors", [])]},
    }))
containers = json.loads((home / "containers").read_text()) if (home / "containers").exists() else []
if sys.argv[1] == "ps":
    print("\\n".join(container["Id"] for container in containers))
if sys.argv[1] == "inspect":
    print(json.dumps(containers))
""",
}
KNOWN = (
    "cdi-spec-dirs debug default-runtime dns fail-restart features labels live-restore log-driver log-opts pidfile "
    "proxies registry-mirrors runtimes"
)
GPU_CONTAINER = {
    "Id": "c1",
    "Name": "/qwen",
    "HostConfig": {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]},
    "Config": {"Labels": {}},
}


class Host:
    """A directory with a daemon.json, the fake tools, and what they were told."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys
        self.file = home / "daemon.json"
        self.state = home / ".daemon.json.managed"
        (home / "known").write_text(KNOWN)

    def start(self, config: dict | None = None) -> None:
        """The fake dockerd starts with daemon.json (`config` is written first)."""
        if config is not None:
            self.file.write_text(json.dumps(config))
        (self.home / "running.json").write_text(self.file.read_text() if self.file.exists() else "{}")

    @property
    def config(self) -> dict:
        return json.loads(self.file.read_text())

    @property
    def calls(self) -> list[str]:
        calls = self.home / "calls"
        return calls.read_text().split() if calls.exists() else []

    def run(self, settings: dict, check: bool = False, **options) -> dict:
        """The module's result; `failed` where it failed."""
        arguments = {"settings": settings, "path": str(self.file), "timeout": 1, **options}
        arguments |= {"_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            docker_daemon_config.main()
        return json.loads(self.capsys.readouterr().out)


@pytest.fixture
def host(tmp_path: Path, capsys, monkeypatch) -> Host:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in FAKES.items():
        script = (
            f"#!{sys.executable} -S\nimport json, sys\nfrom pathlib import Path\nhome = Path({str(tmp_path)!r})\n{body}"
        )
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return Host(tmp_path, capsys)


NVIDIA = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}


def test_a_runtime_is_added_by_a_reload_and_foreign_settings_stay(host: Host):
    host.start({"runtimes": {"kata": {"path": "/opt/kata"}}, "dns": ["192.0.2.53"]})
    result = host.run(NVIDIA)
    assert (result["changed"], result["action"], result["changed_keys"]) == (True, "reload", ["runtimes.nvidia"])
    assert host.config == {"runtimes": {"kata": {"path": "/opt/kata"}, **NVIDIA["runtimes"]}, "dns": ["192.0.2.53"]}
    assert result["validated"]
    assert host.calls == ["reload"]
    assert "runtimes.nvidia" in result["effective"]
    assert json.loads(Path(result["backup_file"]).read_text()).keys() == {"runtimes", "dns"}


def test_the_second_run_changes_nothing(host: Host):
    host.start({"dns": ["192.0.2.53"]})
    host.run(NVIDIA)
    text, state = host.file.read_text(), host.state.read_text()
    result = host.run(NVIDIA)
    assert (result["changed"], result["action"]) == (False, "none")
    assert (host.file.read_text(), host.state.read_text()) == (text, state)
    assert host.calls == ["reload"]


def test_a_key_that_is_read_at_start_needs_a_restart(host: Host):
    host.start({})
    result = host.run({"features": {"cdi": True}, "cdi-spec-dirs": ["/etc/cdi"]})
    assert result["action"] == "restart"
    assert sorted(result["action_keys"]) == ["cdi-spec-dirs", "features.cdi"]
    assert host.calls == ["reset-failed", "restart"]
    assert result["effective"] == {"features.cdi": True, "cdi-spec-dirs": ["/etc/cdi"]}


def test_no_restart_for_what_is_in_force_already(host: Host):
    host.start({"features": {"cdi": True}})
    host.file.write_text("{}")
    result = host.run({"features": {"cdi": True}})
    assert (result["changed"], result["action"]) == (True, "none")
    assert host.config == {"features": {"cdi": True}}
    assert host.calls == []


def test_a_daemon_that_never_took_the_file_over_is_told_again(host: Host):
    host.start({})
    host.run({"log-driver": "local"})
    host.start({})
    host.file.write_text('{"log-driver": "local"}')
    result = host.run({"log-driver": "local"})
    assert (result["changed"], result["changed_keys"], result["action"]) == (True, [], "restart")


def test_no_restart_under_gpu_containers(host: Host):
    host.start({"debug": True})
    (host.home / "containers").write_text(json.dumps([GPU_CONTAINER]))
    before = host.file.read_text()
    result = host.run({"log-driver": "local"})
    assert result["failed"]
    assert "log-driver" in result["msg"]
    assert "qwen" in result["msg"]
    assert host.file.read_text() == before
    assert not host.state.exists()
    assert host.calls == []

    predicted = host.run({"log-driver": "local"}, check=True)
    assert (predicted["changed"], predicted["action"]) == (True, "restart_needed")

    assert host.run({"live-restore": True})["action"] == "reload"
    assert host.run({"log-driver": "local"}, restart_with_gpu_containers=True)["action"] == "restart"


def test_other_containers_are_no_obstacle(host: Host):
    host.start({})
    (host.home / "containers").write_text(json.dumps([{"Id": "c2", "Name": "/web", "HostConfig": {}, "Config": {}}]))
    assert host.run({"log-driver": "local"})["action"] == "restart"


def test_restart_never_leaves_it_to_the_caller(host: Host):
    host.start({})
    result = host.run({"log-driver": "local"}, restart="never")
    assert (result["changed"], result["action"]) == (True, "restart_needed")
    assert host.calls == []
    again = host.run({"log-driver": "local"}, restart="never")
    assert (again["changed"], again["action"]) == (False, "restart_needed")


@pytest.mark.parametrize("text", ["{not json", "[]", '{"debug": true} trailing'])
def test_a_file_that_is_not_json_is_left_alone(host: Host, text: str):
    host.start({})
    host.file.write_text(text)
    result = host.run(NVIDIA)
    assert result["failed"]
    assert str(host.file) in result["msg"]
    assert host.file.read_text() == text
    assert not host.state.exists()


def test_a_file_that_is_not_text_is_left_alone(host: Host):
    host.start({})
    host.file.write_bytes(b"\xff\xfe{}")
    assert "UTF-8" in host.run(NVIDIA)["msg"]
    assert host.file.read_bytes() == b"\xff\xfe{}"


def test_a_link_stays_a_link(host: Host):
    (host.home / "elsewhere").mkdir()
    (host.home / "elsewhere/real.json").write_text('{"dns": ["192.0.2.53"]}')
    host.file.symlink_to(host.home / "elsewhere/real.json")
    host.start()
    host.run({"debug": True}, restart="never")
    assert host.file.is_symlink()
    assert host.config == {"dns": ["192.0.2.53"], "debug": True}


def test_an_empty_file_is_no_settings(host: Host):
    host.start({})
    host.file.write_text("\n")
    assert host.run({"debug": True})["changed_keys"] == ["debug"]


def test_check_mode_predicts_and_writes_nothing(host: Host):
    host.start({"debug": False})
    before = {path: path.read_bytes() for path in host.home.iterdir() if path.is_file()}
    result = host.run({"debug": True, "log-driver": "local"}, check=True)
    assert (result["changed"], result["action"]) == (True, "restart")
    assert '"log-driver": "local"' in result["diff"]["after"]
    assert '"log-driver"' not in result["diff"]["before"]
    assert {path: path.read_bytes() for path in host.home.iterdir() if path.is_file()} == before


def test_dockerd_refuses_the_file(host: Host):
    host.start({"debug": True})
    before = host.file.read_text()
    for check in (True, False):
        result = host.run({"no-such-key": 1}, check=check)
        assert result["failed"]
        assert "no-such-key" in result["msg"]
    assert host.file.read_text() == before


def test_validation_has_the_flags_of_the_running_dockerd(host: Host):
    host.start({})
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--log-driver=journald"]) as process:
        (host.home / "pid").write_text(str(process.pid))
        result = host.run({"log-driver": "local"})
        process.terminate()
    assert result["failed"]
    assert "both as a flag" in result["msg"]
    assert host.config == {}


def test_a_dockerd_without_validate_is_no_obstacle(host: Host):
    host.start({})
    (host.home / "old").touch()
    result = host.run({"debug": True})
    assert (result["changed"], result["validated"]) == (True, False)


def test_without_docker_the_file_is_written_for_later(host: Host, monkeypatch):
    for name in FAKES:
        (host.home / "bin" / name).unlink()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(docker_daemon_config.shutil, "which", lambda *_, **__: None)
    host.file.write_text(json.dumps({"pidfile": str(host.home / "none.pid")}))
    result = host.run({"debug": True})
    assert (result["changed"], result["action"], result["validated"]) == (True, "none", False)
    assert host.config["debug"] is True
    assert stat.S_IMODE(host.state.stat().st_mode) == 0o600


def test_a_dockerd_that_does_not_start_gets_its_old_file_back(host: Host):
    host.start({"debug": True})
    before = host.file.read_text()
    result = host.run({"fail-restart": True})
    assert result["failed"]
    assert "Job for docker.service failed" in result["msg"]
    assert "dockerd runs with it" in result["msg"]
    assert host.file.read_text() == before
    assert not host.state.exists()
    assert host.calls.count("restart") == 2
    assert not list(host.home.glob("daemon.json.*"))


def test_values_that_do_not_come_into_force_are_an_error(host: Host):
    host.start({})
    (host.home / "fail-reload").touch()
    result = host.run({"live-restore": True})
    assert result["failed"]
    assert "live-restore is False, not True" in result["msg"]


def test_what_is_no_longer_wanted_goes_and_what_it_displaced_comes_back(host: Host):
    original = {
        "log-driver": "json-file",
        "registry-mirrors": ["https://a.example"],
        "runtimes": {"kata": {"path": "/k"}},
    }
    host.start(original)
    host.run({"log-driver": "local", "registry-mirrors": ["https://b.example"], **NVIDIA})
    assert host.config["registry-mirrors"] == ["https://a.example", "https://b.example"]
    host.run({})
    assert host.config == original
    assert not host.state.exists()


def test_the_last_owner_leaves_the_file_to_the_letter(host: Host):
    host.start({})
    text = '{"log-driver":"json-file",   "debug": false}'
    host.file.write_text(text)
    host.file.chmod(0o600)
    host.run({"live-restore": True}, owner="engine")
    host.run(NVIDIA, owner="toolkit")
    host.run({}, owner="engine")
    assert host.file.read_text() != text
    host.run({}, owner="toolkit")
    assert (host.file.read_text(), host.file.stat().st_mode & 0o777) == (text, 0o600)
    assert not host.state.exists()


def test_a_file_that_was_not_there_goes_with_the_last_owner_and_stays_with_settings_of_others(host: Host):
    host.start({})
    host.file.unlink(missing_ok=True)
    host.run({"live-restore": True})
    gone = host.run({})
    assert (gone["changed"], gone["diff"]["after"]) == (True, "")
    assert not host.file.exists()
    assert host.run({})["changed"] is False
    host.run({"live-restore": True})
    host.file.write_text(json.dumps(host.config | {"debug": True}))
    host.run({})
    assert host.config == {"debug": True}


def test_owners_do_not_remove_each_other_and_may_not_contradict(host: Host):
    host.start({})
    host.run({"live-restore": True}, owner="engine")
    host.run(NVIDIA, owner="toolkit")
    assert host.config == {"live-restore": True, **NVIDIA}
    assert host.run({"live-restore": True}, owner="engine")["changed"] is False
    result = host.run({"live-restore": False}, owner="toolkit")
    assert result["failed"]
    assert "live-restore (engine)" in result["msg"]


def test_a_key_changed_by_hand_is_healed(host: Host):
    host.start({})
    host.run({"live-restore": True, "log-driver": "local"})
    host.file.write_text(json.dumps(host.config | {"live-restore": False}))
    result = host.run({"live-restore": True, "log-driver": "local"})
    assert (result["changed"], result["changed_keys"], result["action"]) == (True, ["live-restore"], "reload")


def test_passwords_of_proxies_are_not_shown(host: Host):
    host.start({})
    result = host.run({"proxies": {"http-proxy": "http://user:secret@proxy.example:3128"}}, check=True)
    assert "proxy.example:3128" in result["diff"]["after"]
    assert "secret" not in json.dumps(result["diff"])
    host.run({"proxies": {"http-proxy": "http://user:secret@proxy.example:3128"}})
    assert stat.S_IMODE(host.file.stat().st_mode) == 0o600


def test_a_dockerd_outside_systemd_is_sent_sighup(host: Host):
    hup = host.home / "hup"
    script = (
        f"import signal, pathlib, time; signal.signal(signal.SIGHUP, lambda *_: pathlib.Path({str(hup)!r}).touch())\n"
        f"pathlib.Path({str(host.home / 'ready')!r}).touch()\n"
        "while True: time.sleep(0.05)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while not (host.home / "ready").exists():
            time.sleep(0.01)
        (host.home / "docker.pid").write_text(str(process.pid))
        host.file.write_text(json.dumps({"pidfile": str(host.home / "docker.pid")}))
        result = host.run({"registry-mirrors": ["https://a.example"]})
        end = time.monotonic() + 5
        while not hup.exists() and time.monotonic() < end:
            time.sleep(0.01)
        restart = host.run({"registry-mirrors": ["https://a.example"], "log-driver": "local"})
        process.send_signal(signal.SIGTERM)
    assert hup.exists()
    assert result["action"] == "reload"
    assert restart["action"] == "restart_needed"


def test_a_new_file_is_readable_by_all_and_an_old_one_keeps_its_mode(host: Host):
    host.start()
    host.run({"debug": True})
    assert stat.S_IMODE(host.file.stat().st_mode) == 0o644
    host.file.chmod(0o640)
    host.run({"debug": False})
    assert stat.S_IMODE(host.file.stat().st_mode) == 0o640


def test_defaults_give_way_to_what_others_wrote(host: Host):
    host.start({"log-driver": "journald"})
    defaults = {"log-driver": "local", "log-opts": {"max-size": "50m"}, "live-restore": True}
    host.run({}, defaults=defaults)
    assert host.config == {"log-driver": "journald", "live-restore": True}
    host.run({"debug": True, "live-restore": False}, defaults=defaults)
    assert host.config == {"log-driver": "journald", "live-restore": False, "debug": True}


def test_a_default_stays_when_nobody_else_sets_it(host: Host):
    host.start({})
    host.run({}, defaults={"log-driver": "local", "log-opts": {"max-size": "50m"}})
    assert host.config == {"log-driver": "local", "log-opts": {"max-size": "50m"}}
    assert host.run({}, defaults={"log-driver": "local", "log-opts": {"max-size": "50m"}})["changed"] is False


def test_a_default_changed_by_hand_is_healed(host: Host):
    host.start({})
    host.run({}, defaults={"live-restore": True})
    host.file.write_text('{"live-restore": false}')
    assert host.run({}, defaults={"live-restore": True})["changed_keys"] == ["live-restore"]
    assert host.run({}, defaults={"live-restore": True})["changed"] is False
    host.file.write_text("{}")
    assert host.run({}, defaults={"live-restore": True})["changed_keys"] == ["live-restore"]


def test_what_others_had_comes_back_before_a_default(host: Host):
    host.start({"live-restore": False})
    host.run({"live-restore": True}, defaults={"live-restore": True})
    host.run({}, defaults={"live-restore": True})
    assert host.config == {"live-restore": False}
