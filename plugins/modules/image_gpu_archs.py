#!/usr/bin/python
"""Read which GPU code the container images of a host hold."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_gpu_archs
short_description: Read which GPU code container images hold
version_added: 0.2.0
description:
  - Reads the CUDA fat binaries of named libraries in images that are on the host. It needs no GPU, driver or CUDA.
  - Changes nothing. The image's own Python reads the files in a container that has no network, no capabilities and a
    read-only file system. Where the image has no C(python3) that runs on this host, the files are copied out of a
    container that is never started. Either container is removed.
  - Needs the C(docker) command line program.
options:
  images:
    description: The images to look into.
    type: list
    elements: dict
    required: true
    suboptions:
      reference:
        description: Name, name with digest, or id of an image that is on the host.
        type: str
        required: true
      libraries:
        description: The libraries to read.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description: What the result calls the library.
            type: str
            required: true
          files:
            description: Where it may be, below a folder of Python packages; every one that is there is read.
            type: list
            elements: str
            required: true
  cache:
    description:
      - JSON file that remembers what was read, by the image's id, so that a second look starts no container.
      - It is written in check mode too.
    type: path
extends_documentation_fragment: blackwell.serving.only_reads
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Read the GPU code of an engine's image
  blackwell.serving.image_gpu_archs:
    images:
      - reference: lmsysorg/sglang:v0.5.19-cu129
        libraries:
          - name: torch
            files: [torch/lib/libtorch_cuda.so]
          - name: sgl_kernel
            files: [sgl_kernel/sm100/common_ops.abi3.so, sgl_kernel/common_ops.abi3.so]
    cache: /var/cache/blackwell-serving/image-code.json
"""

RETURN = r"""
images:
  description: What each image is and holds, in the order of the option.
  returned: success
  type: list
  elements: dict
  contains:
    reference:
      description: The image, as it was named.
      type: str
    id:
      description: The image's id.
      type: str
    digests:
      description: Digests under which registries know the image; empty for one that was built or loaded here.
      type: list
      elements: str
    architecture:
      description: The processor architecture it is for.
      type: str
      sample: amd64
    size_bytes:
      description: Its size on disk.
      type: int
    cuda:
      description: CUDA version of its torch, else the one that the image's environment names; may be null.
      type: str
      sample: "12.9"
    torch:
      description: Version of its torch; may be null.
      type: str
      sample: 2.13.0+cu129
    libraries:
      description: One entry for each file that was found, and one without a path for a library that has none.
      type: list
      elements: dict
      sample: [{name: torch, path: /usr/local/lib/python3.12/dist-packages/torch/lib/libtorch_cuda.so,
                codes: [sm_90, sm_120, compute_120]}]
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Output
from ansible_collections.blackwell.serving.plugins.module_utils.image_code import ImageUnreadable, read_image


class DockerCli:
    """The command line program; see image_code.Docker."""

    def __init__(self, program: str) -> None:
        self.program = program

    def __call__(self, arguments: list[str], stdin: bytes | None = None, timeout: float = 60) -> Output:
        try:
            done = subprocess.run(
                [self.program, *arguments],
                input=stdin or b"",
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Output(None, "", f"docker {arguments[0]} gave no answer in {timeout:g} s")
        except OSError as error:
            return Output(None, "", f"{self.program}: {error.strerror}")
        return Output(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def main() -> None:
    library = {
        "name": {"type": "str", "required": True},
        "files": {"type": "list", "elements": "str", "required": True},
    }
    image = {
        "reference": {"type": "str", "required": True},
        "libraries": {"type": "list", "elements": "dict", "required": True, "options": library},
    }
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "dict", "required": True, "options": image},
            "cache": {"type": "path"},
        },
        supports_check_mode=True,
    )
    program = module.get_bin_path("docker")
    if program is None:
        module.fail_json(msg="docker is not installed, so no image can be looked into.")
    docker = DockerCli(program)
    cache = module.params["cache"]
    try:
        read = [read_image(docker, each["reference"], each["libraries"], cache) for each in module.params["images"]]
    except (ImageUnreadable, OSError) as problem:
        module.fail_json(msg=f"{problem}.")
    module.exit_json(changed=False, images=read)


if __name__ == "__main__":
    main()
