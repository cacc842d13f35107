"""Looking into images: with a stand-in for the docker program, and with a real Docker engine on images made here."""

import importlib
import io
import json
import subprocess
import tarfile
import uuid
from pathlib import Path

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import image_code
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Output
from ansible_collections.blackwell.serving.plugins.module_utils.image_code import ImageUnreadable, read_image
from ansible_collections.blackwell.serving.plugins.modules.image_gpu_archs import DockerCli

LAB = Path(__file__).resolve().parents[2] / "molecule/lab"
ID = "sha256:" + "1" * 64
TORCH = {"name": "torch", "files": ["torch/lib/libtorch_cuda.so"]}
MOE = {"name": "vllm/_moe_C", "files": ["vllm/_moe_C_stable_libtorch.abi3.so", "vllm/_moe_C.abi3.so"]}
VERSION = b"__version__ = '2.13.0+cu129'\ncuda: Optional[str] = '12.9'\n"
PLACE = "usr/local/lib/python3.12/dist-packages"


class FakeDocker:
    """A stand-in: answers of the docker program by its first words; a container of it holds `files`."""

    def __init__(self, environment=(), files=None, **answers):
        described = {
            "Id": ID,
            "RepoDigests": ["vllm/vllm-openai@sha256:22", "mirror.example/vllm@sha256:22"],
            "Architecture": "amd64",
            "Size": 42,
            "Config": {"Env": list(environment)},
        }
        self.answers = {"image": Output(0, json.dumps([described]), ""), "rm": Output(0), "create": Output(0, "c1\n")}
        self.answers |= answers
        self.files = files or {}
        self.asked = []

    def __call__(self, arguments, stdin=None, timeout=60):
        self.asked.append(arguments)
        if arguments[0] == "cp" and "cp" not in self.answers:
            source, target = arguments[-2:]
            path = source.removeprefix("c1:/")
            if path not in self.files:
                return Output(1, "", f"Error response from daemon: Could not find the file /{path} in container c1")
            Path(target).write_bytes(self.files[path])
            return Output(0)
        return self.answers[arguments[0]]

    def verbs(self):
        return [arguments[0] for arguments in self.asked]


def printed(codes=("sm_120",), torch=None) -> Output:
    """What cuda_fatbin prints inside the image."""
    libraries = [{"name": "torch", "path": f"/{PLACE}/torch/lib/libtorch_cuda.so", "codes": list(codes)}]
    return Output(0, json.dumps({"libraries": libraries, "torch": torch or {}}), "")


def test_what_the_images_own_python_read():
    docker = FakeDocker(run=printed(["sm_90", "sm_120"], {"version": "2.13.0+cu129", "cuda": "12.9"}))
    image = read_image(docker, "vllm/vllm-openai:v1", [TORCH])
    assert image == {
        "reference": "vllm/vllm-openai:v1",
        "id": ID,
        "digests": ["sha256:22"],
        "architecture": "amd64",
        "size_bytes": 42,
        "cuda": "12.9",
        "torch": "2.13.0+cu129",
        "libraries": [{"name": "torch", "path": f"/{PLACE}/torch/lib/libtorch_cuda.so", "codes": ["sm_90", "sm_120"]}],
    }


@pytest.mark.parametrize(
    ("environment", "torch", "cuda"),
    [
        (["CUDA_VERSION=12.8.1"], {}, "12.8"),
        (["CUDA_VERSION=12.8.1"], {"cuda": "12.9"}, "12.9"),
        (["CUDA_VERSION="], {}, None),
        ([], {}, None),
    ],
)
def test_cuda_is_torchs_else_the_environments(environment, torch, cuda):
    assert read_image(FakeDocker(environment, run=printed(torch=torch)), "image", [TORCH])["cuda"] == cuda


def test_the_container_can_do_nothing_but_read():
    docker = FakeDocker(run=printed())
    read_image(docker, "image", [TORCH])
    (run,) = (arguments for arguments in docker.asked if arguments[0] == "run")
    line = " ".join(run)
    for confinement in ("--network none", "--read-only", "--cap-drop ALL", "--rm", "NVIDIA_VISIBLE_DEVICES=void"):
        assert confinement in line
    assert "--gpus" not in line
    assert run[run.index("--entrypoint") + 2] == ID, "by id, so that no other image of that name is started"


def test_a_second_look_starts_no_container(tmp_path):
    cache = str(tmp_path / "folder/cache.json")
    first = read_image(FakeDocker(run=printed()), "image", [TORCH], cache)
    second = FakeDocker()
    assert read_image(second, "image", [TORCH], cache) == first
    assert second.verbs() == ["image"]


def test_a_question_about_other_files_is_asked_anew(tmp_path):
    cache = str(tmp_path / "cache.json")
    read_image(FakeDocker(run=printed()), "image", [TORCH], cache)
    other = FakeDocker(run=printed(["sm_90"]))
    assert read_image(other, "image", [TORCH, MOE], cache)["libraries"][0]["codes"] == ["sm_90"]
    assert "run" in other.verbs()


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"' + ID + '": {}}', '{"' + ID + '": 1}'])
def test_a_damaged_cache_is_written_anew(tmp_path, content):
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    read_image(FakeDocker(run=printed()), "image", [TORCH], str(cache))
    assert ID in json.loads(cache.read_text())
    assert list(tmp_path.iterdir()) == [cache]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"image": Output(1, "[]", "Error: No such image: image")}, ["image is not on this host", "pull"]),
        ({"image": Output(1, "", "Cannot connect to the Docker daemon")}, ["Cannot connect to the Docker daemon"]),
        ({"image": Output(None, "", "docker image gave no answer in 60 s")}, ["cannot be asked", "no answer"]),
        ({"image": Output(0, "[{}]")}, ["no description"]),
        ({"run": Output(None, "", "docker run gave no answer in 900 s")}, ["no answer in 900 s"]),
        ({"run": Output(1, "", "Traceback\nMemoryError")}, ["reading its libraries fails: MemoryError"]),
        ({"run": Output(0, "hello")}, ["reading its libraries fails"]),
        ({"run": Output(0, "[]")}, ["reading its libraries fails"]),
        ({"run": Output(127), "create": Output(1, "", "no space left")}, ["docker create fails: no space left"]),
        ({"run": Output(127), "cp": Output(1, "", "no space left on device")}, ["docker cp", "no space left"]),
    ],
)
def test_why_an_image_cannot_be_read(answers, words):
    with pytest.raises(ImageUnreadable) as refusal:
        read_image(FakeDocker(**answers), "image", [TORCH])
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_container_that_hangs_is_removed():
    docker = FakeDocker(run=Output(None, "", "no answer"))
    with pytest.raises(ImageUnreadable):
        read_image(docker, "image", [TORCH])
    (run,) = (arguments for arguments in docker.asked if arguments[0] == "run")
    assert ["rm", "--force", run[run.index("--name") + 1]] in docker.asked


def test_a_library_that_cannot_be_read_is_no_library_without_code(tmp_path):
    broken = [{"name": "torch", "path": "/x.so", "codes": [], "error": "truncated within a section"}]
    docker = FakeDocker(run=Output(0, json.dumps({"libraries": broken, "torch": {}})))
    with pytest.raises(ImageUnreadable, match=r"/x\.so .*truncated within a section"):
        read_image(docker, "image", [TORCH], str(tmp_path / "cache.json"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "run",
    [
        Output(127, "", 'exec: "python3": executable file not found in $PATH: unknown'),
        Output(1, "", "standard_init_linux.go:228: exec user process caused: exec format error"),
    ],
    ids=["no Python", "Python of another architecture"],
)
def test_without_a_python_that_runs_here_the_files_are_copied_out(write_gpu_code, run):
    library = write_gpu_code.elf_with_gpu_code(["sm_120", "compute_120"])
    files = {f"{PLACE}/torch/lib/libtorch_cuda.so": library, f"{PLACE}/torch/version.py": VERSION}
    docker = FakeDocker(run=run, files=files)
    image = read_image(docker, "image", [TORCH, MOE])
    assert image["libraries"] == [
        {"name": "torch", "path": f"/{PLACE}/torch/lib/libtorch_cuda.so", "codes": ["sm_120", "compute_120"]},
        {"name": "vllm/_moe_C", "path": None, "codes": []},
    ]
    assert image["cuda"] == "12.9"
    assert docker.asked[-1] == ["rm", "--force", "c1"]


@pytest.fixture(scope="module")
def lab():
    """The module molecule/lab/lab.py, where a Docker engine answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LAB)
        module = importlib.import_module("lab")
    problem = module.engine_problem()
    return pytest.skip(problem) if problem else module


def imported(content: dict[str, bytes], *options: str) -> str:
    """The id of an image that holds these files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    done = subprocess.run(
        ["docker", "import", *options, "-"], input=archive.getvalue(), capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def image_with_python(lab, write_gpu_code, tmp_path):
    """The lab's Debian with a made-up torch in a virtual environment."""
    base = "blackwell-lab-base:trixie"
    if subprocess.run(["docker", "image", "inspect", base], capture_output=True, check=False).returncode:
        with lab.one_at_a_time():
            lab.build_base("trixie")
    (tmp_path / "libtorch_cuda.so").write_bytes(write_gpu_code.elf_with_gpu_code(["sm_90a", "sm_120"]))
    (tmp_path / "version.py").write_bytes(VERSION)
    folder = "/opt/engine/lib/python3.13/site-packages/torch"
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base}\nENV CUDA_VERSION=12.8.1\nCOPY libtorch_cuda.so {folder}/lib/\nCOPY version.py {folder}/\n"
    )
    tag = f"blackwell-test-image:{uuid.uuid4().hex}"
    subprocess.run(["docker", "build", "--quiet", "--tag", tag, str(tmp_path)], capture_output=True, check=True)
    yield tag
    subprocess.run(["docker", "image", "rm", tag], capture_output=True, check=True)


@pytest.fixture
def image_without_python(lab, write_gpu_code):
    folder = f"{PLACE}/torch"
    library = write_gpu_code.elf_with_gpu_code(["sm_100f"])
    name = imported({f"{folder}/lib/libtorch_cuda.so": library, f"{folder}/version.py": VERSION})
    yield name
    subprocess.run(["docker", "image", "rm", name], capture_output=True, check=True)


def containers_of(image: str) -> str:
    found = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", f"ancestor={image}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout


def test_a_real_container_reads_a_virtual_environment(image_with_python, tmp_path):
    docker = DockerCli("docker")
    cache = str(tmp_path / "cache.json")
    image = read_image(docker, image_with_python, [TORCH, MOE], cache)
    torch, moe = image["libraries"]
    assert torch["path"] == "/opt/engine/lib/python3.13/site-packages/torch/lib/libtorch_cuda.so"
    assert torch["codes"] == ["sm_90a", "sm_120"]
    assert moe["path"] is None
    assert (image["cuda"], image["torch"]) == ("12.9", "2.13.0+cu129")
    assert image["id"].startswith("sha256:")
    assert not containers_of(image_with_python)
    assert json.loads(Path(cache).read_text())


def test_a_real_container_can_neither_write_nor_reach_out_nor_is_it_privileged(image_with_python, monkeypatch):
    program = """
import json, os, socket
found = {}
for name, act in {
    "writes": lambda: open("/tmp/file", "w"),
    "reaches": lambda: socket.create_connection(("192.0.2.1", 80), 5),
    "changes its root": lambda: os.chroot("/"),
}.items():
    try:
        act()
        found[name] = "yes"
    except OSError as problem:
        found[name] = problem.strerror
print(json.dumps({"libraries": [], "torch": {"version": found}}))
"""
    monkeypatch.setattr(image_code.cuda_fatbin.__spec__.loader, "get_source", lambda name: program, raising=False)
    assert read_image(DockerCli("docker"), image_with_python, [TORCH])["torch"] == {
        "writes": "Read-only file system",
        "reaches": "Network is unreachable",
        "changes its root": "Operation not permitted",
    }


def test_a_real_image_without_python_is_read_from_outside(image_without_python):
    image = read_image(DockerCli("docker"), image_without_python, [TORCH])
    assert image["libraries"] == [
        {"name": "torch", "path": f"/{PLACE}/torch/lib/libtorch_cuda.so", "codes": ["sm_100f"]}
    ]
    assert image["cuda"] == "12.9"
    assert not containers_of(image_without_python)


def test_a_real_engine_says_that_an_image_is_not_there(lab):
    with pytest.raises(ImageUnreadable, match="is not on this host"):
        read_image(DockerCli("docker"), f"blackwell-test-image:{uuid.uuid4().hex}", [TORCH])


def test_a_container_that_takes_too_long_is_gone_afterwards(image_with_python, monkeypatch):
    monkeypatch.setattr(image_code, "READ_SECONDS", 0.2)
    program = image_code.cuda_fatbin.__spec__.loader
    monkeypatch.setattr(program, "get_source", lambda name: "import time; time.sleep(60)", raising=False)
    with pytest.raises(ImageUnreadable, match="gave no answer"):
        read_image(DockerCli("docker"), image_with_python, [TORCH])
    assert not containers_of(image_with_python)
