"""Package sets: what has to be done, worked out from dpkg's and apt's own words."""

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.package_set import (
    Steps,
    Wanted,
    chosen_version,
    complaints,
    dkms_complaints,
    is_local_source,
    last_words,
    needed_steps,
    parse_dkms_status,
    parse_dpkg_status,
    parse_madison,
    parse_policy,
    parse_simulation,
    parse_wanted,
    upstream_version,
)
from hypothesis import given
from hypothesis import strategies as st

# dpkg-query's fields as on a Debian 13 host; the packages and their states are made up.
STATUS = """\
dkms\tall\tinstall\tok\tinstalled\t3.2.2-1~deb13u1
nvidia-driver-cuda\tamd64\thold\tok\tinstalled\t580.173.02-1
nvidia-kernel-open-dkms\tamd64\tinstall\tok\thalf-configured\t580.173.02-1
libcuda1\tamd64\tinstall\tok\tinstalled\t580.173.02-1
libcuda1\ti386\tinstall\tok\tinstalled\t550.163.01-2
nvidia-kernel-dkms\tamd64\tdeinstall\tok\tconfig-files\t550.163.01-2
nvidia-smi\tamd64\tinstall\treinstreq\tinstalled\t550.163.01-2
"""


@pytest.fixture
def packages():
    return parse_dpkg_status(STATUS, "amd64")


def test_status_keeps_the_host_architecture_alone(packages):
    assert packages["libcuda1"].version == "580.173.02-1"
    assert packages["dkms"].installed
    assert not packages["nvidia-kernel-dkms"].installed


def test_steps_in_one_picture(packages):
    wanted = parse_wanted([{"name": "nvidia-driver-cuda", "version": "595.*"}, "dkms", "nvidia-persistenced"])
    assert needed_steps(
        wanted, ["nvidia-smi", "nvidia-kernel-dkms", "dkms"], packages, hold=True, hold_also=["libcuda*"]
    ) == Steps(
        heal=["nvidia-kernel-open-dkms", "nvidia-smi"],
        install=[Wanted("nvidia-driver-cuda", "595.*"), Wanted("nvidia-persistenced")],
        remove=["nvidia-smi"],
        purge=["nvidia-kernel-dkms", "nvidia-smi"],
        hold=["dkms", "libcuda1", "nvidia-persistenced"],
    )


def test_nothing_to_do_where_all_is_as_wanted(packages):
    assert (
        needed_steps(
            parse_wanted(["nvidia-driver-cuda=580.*"]),
            ["cuda*"],
            {"nvidia-driver-cuda": packages["nvidia-driver-cuda"]},
            hold=True,
        )
        == Steps()
    )


@pytest.mark.parametrize("item", ["Not A Name", {"version": "1"}, {"name": "a-b", "versoin": "1"}, "-y"])
def test_what_names_no_package_is_refused(item):
    with pytest.raises(ValueError, match="package"):
        parse_wanted([item])


# Recorded with apt 2.6 (Debian 12).
POLICY = """\
dkms:
  Installed: (none)
  Candidate: 3.0.10-8+deb12u1
  Version table:
     3.0.10-8+deb12u1 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
no-candidate:
  Installed: (none)
  Candidate: (none)
  Version table:
"""
MADISON = """\
nvidia-driver-cuda | 595.91.07-1 | http://mirror/compute/cuda/repos/debian12/x86_64  Packages
nvidia-driver-cuda | 580.178.04-1 | http://mirror/compute/cuda/repos/debian12/x86_64  Packages
nvidia-driver-cuda | 580.173.02-1 | http://mirror/compute/cuda/repos/debian12/x86_64  Packages
nvidia-driver-cuda | 580.173.02-1 | http://other/x86_64  Packages
      dkms | 3.0.10-8+deb12u1 | http://deb.debian.org/debian bookworm/main Sources
"""


def test_candidates_and_offers():
    assert parse_policy(POLICY) == {"dkms": "3.0.10-8+deb12u1"}
    assert parse_madison(MADISON) == {"nvidia-driver-cuda": ["595.91.07-1", "580.178.04-1", "580.173.02-1"]}


@pytest.mark.parametrize(
    ("pattern", "candidate", "chosen"),
    [
        ("", "595.91.07-1", "595.91.07-1"),
        ("580.*", "580.173.02-1", "580.173.02-1"),
        ("580.*", "595.91.07-1", "580.178.04-1"),
        ("580.173.02-*", "595.91.07-1", "580.173.02-1"),
        ("610.*", "595.91.07-1", None),
    ],
)
def test_the_candidate_counts_if_it_will_do_and_else_the_newest_that_does(pattern, candidate, chosen):
    offered = parse_madison(MADISON)
    assert chosen_version(Wanted("nvidia-driver-cuda", pattern), {"nvidia-driver-cuda": candidate}, offered) == chosen


SIMULATION = """\
NOTE: This is only a simulation!
Remv nvidia-driver [550.163.01-2]
Purg nvidia-kernel-dkms:amd64 [550.163.01-2] [nvidia-driver:amd64 ]
Inst libcuda1 [550.163.01-2] (580.173.02-1 localhost [amd64]) []
Inst nvidia-kernel-open-dkms:amd64 (580.173.02-1 NVIDIA:1.0/NVIDIA CUDA [amd64])
Conf libcuda1 (580.173.02-1 localhost [amd64])
"""


def test_simulation_tells_what_comes_and_what_goes():
    installs, removes = parse_simulation(SIMULATION)
    assert installs == {"libcuda1": "580.173.02-1", "nvidia-kernel-open-dkms": "580.173.02-1"}
    assert removes == ["nvidia-driver", "nvidia-kernel-dkms"]


def test_complaints_leave_the_noise_out():
    output = """Reading package lists...
Some packages could not be installed. This may mean that you have
The following packages have unmet dependencies:
 nvidia-driver-cuda : Depends: libcuda1 (= 580.173.02-1) but 595.91.07-1 is to be installed
E: Unable to correct problems, you have held broken packages.
"""
    assert complaints(output).splitlines() == [
        "nvidia-driver-cuda : Depends: libcuda1 (= 580.173.02-1) but 595.91.07-1 is to be installed",
        "E: Unable to correct problems, you have held broken packages.",
    ]
    assert complaints("some\nother\nwords") == "some\nother\nwords"


def test_complaints_keep_the_words_of_a_package_s_own_script():
    # Debian 13, a package whose postinst fails
    output = """Setting up somebody-elses (1) ...
no database
dpkg: error processing package somebody-elses (--configure):
 installed somebody-elses package post-installation script subprocess returned error exit status 1
Processing triggers for libc-bin (2.41-12) ...
Errors were encountered while processing:
 somebody-elses
E: Sub-process /usr/bin/dpkg returned an error code (1)
"""
    assert complaints(output).splitlines() == [
        "no database",
        "dpkg: error processing package somebody-elses (--configure):",
        "installed somebody-elses package post-installation script subprocess returned error exit status 1",
        "E: Sub-process /usr/bin/dpkg returned an error code (1)",
    ]


def test_complaints_name_what_could_not_be_fetched_with_the_reason():
    failed = [
        f"E: Failed to fetch http://mirror/cuda-{number}.deb  Could not connect to mirror:80" for number in range(30)
    ]
    output = "".join(f"Err:{number} http://mirror/  cuda-{number} 12.9\n  Could not connect\n" for number in range(30))
    words = complaints("\n".join([output, *failed, "E: Unable to fetch some archives, maybe run apt-get update?"]))
    assert words.splitlines() == [
        *failed[:2],
        "E: Unable to fetch some archives, maybe run apt-get update?",
        "(and 28 more of those)",
    ]


@pytest.mark.parametrize(
    ("version", "upstream"),
    [
        ("595.91.07-1", "595.91.07"),
        ("580.95.05-0ubuntu0.24.04.1", "580.95.05"),
        ("5:29.1-1~debian.12", "29.1"),
        ("3", "3"),
    ],
)
def test_upstream_version(version, upstream):
    assert upstream_version(version) == upstream


@pytest.mark.parametrize(
    ("text", "states"),
    [
        # dkms 3.2.2 and 3.0.10 (Debian 13 and 12), the module of a test package
        ("nvidia/595.91.07, 6.12.57+deb13-amd64, x86_64: installed\n", {"nvidia": "installed"}),
        (
            "nvidia/595.91.07, 6.12.57, x86_64: installed (Differences between built …)\n",
            {"nvidia": "installed"},
        ),
        (
            "nvidia/595.91.07, 6.1.0, x86_64: installed (WARNING! Diff between built …)\n",
            {"nvidia": "installed"},
        ),
        ("nvidia/595.91.07: added\nnvidia/580.178.04, 6.1.0, x86_64: installed\n", {"nvidia": "added"}),
        # older dkms: the form in github.com/linux-surface/linux-surface/issues/573, with this version
        ("nvidia, 595.91.07, 5.11.0-36-generic, x86_64: installed\n", {"nvidia": "installed"}),
        ("zfs/595.91.0, 6.1.0, x86_64: installed\n", {}),
    ],
)
def test_what_dkms_has_of_a_version(text, states):
    assert parse_dkms_status(text, "595.91.07") == states


def test_dkms_complaints_and_the_end_of_its_log():
    # dkms 3.2.2 (Debian 13), the module of a test package whose Makefile was broken
    said = """Autoinstall of module nvidia/610.57.04 for kernel 6.12.57 (x86_64)
Building module(s)...(bad exit status: 2)
Failed command:
make -j2 KERNELRELEASE=6.12.57

Autoinstall on 6.12.57 failed for module(s) nvidia(10).

Error! Bad return status for module build on kernel: 6.12.57 (x86_64)
Consult /var/lib/dkms/nvidia/610.57.04/build/make.log for more information.

Error! One or more modules failed to install during autoinstall.
Refer to previous errors for more information.
"""
    log = """no such thing
make: *** [Makefile:2: nvidia.ko] Error 1

# exit code: 2
# elapsed time: 00:00:00
----------------------------------------------------------------
"""
    assert dkms_complaints(said).splitlines() == [
        "Error! Bad return status for module build on kernel: 6.12.57 (x86_64)",
        "Consult /var/lib/dkms/nvidia/610.57.04/build/make.log for more information.",
    ]
    assert dkms_complaints("dkms: command not found\n") == "dkms: command not found"
    assert last_words(log).splitlines() == ["no such thing", "make: *** [Makefile:2: nvidia.ko] Error 1"]


LOCAL, REMOTE = ["file:/srv/bundle", "copy:/media/disk"], ["http://deb.example/debian", "cdrom:[Debian"]
ADDRESSES = st.sampled_from(LOCAL + REMOTE)
FIELDS = [" {}", " {} file:/srv/more", "\n {}", "\n file:/srv/more\n {}", " file:/srv/more\n# between them\n {}"]


@given(st.lists(st.tuples(ADDRESSES, st.sampled_from(FIELDS), st.sampled_from(["URIs", "uris"]))))
def test_a_file_in_deb822_is_local_where_each_of_its_addresses_is(stanzas):
    text = "\n".join(
        f"# http://comment.example\nTypes: deb\n{key}:{field.format(address)}\nSuites: ./\n"
        for address, field, key in stanzas
    )
    addresses = [address for address, _, _ in stanzas]
    assert is_local_source("/x/a.sources", text) == (bool(addresses) and set(addresses) <= set(LOCAL))
    assert is_local_source("/x/a.sources", text.rstrip("\n")) == is_local_source("/x/a.sources", text)


@given(st.lists(st.tuples(ADDRESSES, st.sampled_from(["", "[trusted=yes] ", "[ arch=amd64 ]\t"]))))
def test_a_list_is_local_where_each_of_its_lines_is(lines):
    text = "# deb http://comment.example ./\n" + "".join(f" deb {options}{address} ./\n" for address, options in lines)
    addresses = [address for address, _ in lines]
    assert is_local_source("/x/a.list", text) == (bool(addresses) and set(addresses) <= set(LOCAL))


def test_what_apt_does_not_read_is_no_source():
    assert is_local_source("/x/a.list", "deb-src file:/srv/bundle ./\n")
    assert not is_local_source("/x/a.list.save", "deb file:/srv/bundle ./\n")
