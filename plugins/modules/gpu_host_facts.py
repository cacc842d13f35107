#!/usr/bin/python
"""Facts of a GPU host in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_host_facts
short_description: Read everything that a GPU host's roles decide from
version_added: 0.2.0
description:
  - Reads, in one call, the operating system, Secure Boot, NVIDIA's display controllers on the PCI bus, the driver that
    is loaded and the one that is installed, the GPUs, CUDA toolkits, Docker, NVIDIA's container toolkit with its CDI
    specifications, packages and free disk space.
  - Works before any driver is installed and on hosts without a GPU. What is absent is V(null), V(false) or empty;
    nothing that is absent makes it fail.
  - Changes nothing, and starts nothing that would. C(nvidia-smi) runs only where the driver is loaded already.
  - Needs Python 3.9 or newer on the host and no library. Holds of packages, the state of enrolled keys and the Docker
    engine's answers need root.
options:
  venv:
    description: Virtual environment on the host whose python-on-whales is reported.
    type: path
  docker_socket:
    description: Socket of the Docker engine.
    type: path
    default: /var/run/docker.sock
extends_documentation_fragment: blackwell.serving.only_reads
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Read the facts of the GPU host
  blackwell.serving.gpu_host_facts:

- name: Tell which driver is loaded
  ansible.builtin.debug:
    msg: "{{ ansible_facts['gpu_host']['driver']['loaded'] }}"
"""

RETURN = r"""
ansible_facts:
  description: The facts, for C(ansible_facts['gpu_host']).
  returned: always
  type: dict
  contains:
    gpu_host:
      description: Facts of a GPU host.
      returned: always
      type: dict
      contains:
        os:
          description: From C(/etc/os-release), and the machine's architecture by the kernel's and by Debian's name.
          returned: always
          type: dict
          sample:
            id: debian
            id_like: []
            version_id: "13"
            codename: trixie
            name: Debian GNU/Linux 13 (trixie)
            machine: x86_64
            deb_architecture: amd64
        kernel:
          description: Release and boot of the running kernel, and the kernels that have a directory of modules.
          returned: always
          type: dict
          sample:
            release: 6.12.57+deb13-amd64
            boot_id: 6d1e3f9a-0000-4000-8000-000000000000
            installed: [6.12.57+deb13-amd64]
        virtualisation:
          description: What C(systemd-detect-virt) says, such as V(kvm), V(docker) or V(none); V(null) without it.
          returned: always
          type: str
          sample: none
        secure_boot:
          description: V(enabled), V(disabled), V(unsupported) (no UEFI) or V(unknown).
          returned: always
          type: str
          sample: disabled
        mok:
          description:
            - C(key) is the key with which DKMS signs modules, if there is one.
            - C(enrolled) and C(staged) (waits for a person at the console at the next boot) are V(null) where that
              cannot be told.
          returned: always
          type: dict
          sample: {key: /var/lib/dkms/mok.pub, enrolled: false, staged: true}
        network:
          description: Interfaces with their addresses, by C(ip); the loopback interface and those without are left out.
          returned: always
          type: list
          elements: dict
          sample:
            - interface: eth0
              addresses: [192.0.2.10]
        pci:
          description: NVIDIA's display controllers, known without any driver.
          returned: always
          type: list
          elements: dict
          sample:
            - address: "0000:01:00.0"
              vendor: 10de
              device: 2b85
              subsystem: "10de:2057"
              class: "030000"
              driver: nvidia
        driver:
          description:
            - C(loaded) is the module in the running kernel and C(installed) the one on disk for that kernel, each with
              C(version) and C(flavour) (V(open) or V(closed)), or V(null).
            - C(installed) also has C(path) and C(signer).
          returned: always
          type: dict
          sample:
            loaded: {version: 580.95.05, flavour: open}
            installed:
              version: 580.95.05
              flavour: open
              path: /lib/modules/6.12.57+deb13-amd64/updates/dkms/nvidia.ko.xz
              signer: DKMS module signing key
        nouveau_loaded:
          description: Whether the running kernel has loaded nouveau.
          returned: always
          type: bool
        gpus:
          description:
            - What C(nvidia-smi) says of each GPU, memory in MiB; a value that it does not have is V(null).
            - C(pci_bus_id) is written as C(address) in C(pci).
          returned: always
          type: list
          elements: dict
          sample:
            - index: 0
              uuid: GPU-00000000-0000-0000-0000-000000000000
              name: NVIDIA GeForce RTX 5090
              pci_bus_id: "0000:01:00.0"
              pci_device_id: "0x2B8510DE"
              pci_sub_device_id: "0x205710DE"
              driver_version: 580.95.05
              compute_capability: "12.0"
              memory_total_mib: 32607
              memory_reserved_mib: 498
              memory_used_mib: 1
              memory_free_mib: 32108
              persistence_mode: Enabled
              mig_mode: null
              ecc_mode: null
              power_limit_watt: 575.0
        gpu_processes:
          description: Processes that compute on a GPU; C(container) is the id of the Docker container that one is in.
          returned: always
          type: list
          elements: dict
          sample:
            - gpu_uuid: GPU-00000000-0000-0000-0000-000000000000
              pid: 4711
              name: python3
              used_memory_mib: 5120
              container: null
        nvidia_smi_error:
          description: What C(nvidia-smi) said where it failed although the driver is loaded.
          returned: always
          type: str
        gpu_containers:
          description: Running containers that were given a GPU, with their Compose project.
          returned: always
          type: list
          elements: dict
          sample:
            - {id: 0123456789ab, name: qwen, project: serving}
        docker:
          description:
            - The Docker engine. C(running) tells whether it answered; if not, C(version) is the installed one, and what
              only a running engine knows is V(null) or empty.
            - C(enabled) tells whether C(docker.service) starts at boot.
            - C(flavour) is the installed package, V(docker-ce), V(docker.io) or V(null).
          returned: always
          type: dict
          sample:
            running: true
            enabled: true
            version: 29.9.0
            compose_version: 5.5.0
            runtimes: [io.containerd.runc.v2, nvidia, runc]
            default_runtime: runc
            root_dir: /var/lib/docker
            live_restore: true
            cdi_dirs: [/etc/cdi, /var/run/cdi]
            cdi_devices: [nvidia.com/gpu=0, nvidia.com/gpu=all]
            storage_driver: overlayfs
            cgroup_driver: systemd
            cgroup_version: "2"
            flavour: docker-ce
        toolkit:
          description:
            - NVIDIA's container toolkit, its version, the path of its runtime, and what that says of its own version.
          returned: always
          type: dict
          sample: {version: 1.20.0, runtime_path: /usr/bin/nvidia-container-runtime, runtime_version: 1.20.0}
        cdi:
          description: The CDI specifications in the engine's directories, or else in C(/etc/cdi) and C(/var/run/cdi).
          returned: always
          type: dict
          sample:
            specs:
              - {path: /var/run/cdi/nvidia.yaml, kind: nvidia.com/gpu, devices: ["0", all], driver_version: 580.95.05}
        cuda:
          description: CUDA toolkits in C(/usr/local); C(default) is the one that C(/usr/local/cuda) leads to.
          returned: always
          type: list
          elements: dict
          sample:
            - {version: 12.9.1, path: /usr/local/cuda-12.9, nvcc: /usr/local/cuda-12.9/bin/nvcc, default: true}
        packages:
          description: Versions of the installed packages that matter here (driver, CUDA, Docker, kernel and the like).
          returned: always
          type: dict
          sample: {nvidia-open: 580.95.05-1, docker-ce: "5:29.9.0-1~debian.13~trixie"}
        held:
          description: Those of them that are held.
          returned: always
          type: list
          elements: str
          sample: [nvidia-open]
        half_installed:
          description: Those of them that dpkg left between uninstalled and installed.
          returned: always
          type: dict
          sample: {}
        mounts:
          description:
            - The file systems under C(/), C(/boot), C(/usr), C(/var), C(/tmp), C(/var/lib/containerd),
              C(/var/lib/docker) and the engine's data directory, or where that is missing under its nearest parent.
              Sizes are in bytes.
          returned: always
          type: list
          elements: dict
          sample:
            - {path: /var/lib/docker, mount: /, size_bytes: 1000000000000, available_bytes: 900000000000}
        reboot_required:
          description: Whether the host waits for a reboot.
          returned: always
          type: bool
        reboot_reasons:
          description: Why it does.
          returned: always
          type: list
          elements: str
          sample: []
        apt_sources:
          description: Names of the files in C(/etc/apt/sources.list.d).
          returned: always
          type: list
          elements: str
          sample: [debian.sources]
        python_on_whales:
          description: Version of python-on-whales in O(venv), V(null) where there is none.
          returned: always
          type: str
          sample: 0.81.0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.gather import gather
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "venv": {"type": "path"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    facts = gather(Host(), venv=module.params["venv"], docker_socket=module.params["docker_socket"])
    module.exit_json(changed=False, ansible_facts={"gpu_host": facts})


if __name__ == "__main__":
    main()
