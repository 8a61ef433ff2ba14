"""What a processor is, read from descriptions of Intel, AMD and ARM machines."""

from pathlib import Path

import pytest

from cpt_deploy.validation import CpuInfo, read_cpu, software_versions


@pytest.fixture
def cpuinfo(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        return path

    return write


def test_x86_flags_are_read_as_whole_words(cpuinfo):
    cpu = read_cpu(cpuinfo("processor\t: 0\nmodel name\t: Xeon: 8 GHz\nflags\t\t: fpu avx2 avx512_vnni2 avx512f\n\n"))
    assert cpu.model == "Xeon: 8 GHz"
    assert cpu.flags == ("avx2", "avx512f")


def test_the_first_processor_counts(cpuinfo):
    assert read_cpu(cpuinfo("model name: first\nflags: avx2\n\nmodel name: second\nflags: \n")).model == "first"


def test_arm_calls_flags_features(cpuinfo):
    assert read_cpu(cpuinfo("Features\t: fp asimd asimddp i8mm\n")).flags == ("asimddp", "i8mm")


def test_without_a_description_the_flags_are_unknown(tmp_path):
    assert read_cpu(tmp_path / "absent").flags is None


@pytest.mark.parametrize(
    ("architecture", "flags", "saturates"),
    [
        ("x86_64", ("avx2",), True),
        ("AMD64", ("avx2", "avx512f", "avx512bw"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512f", "avx512_vnni"), False),
        ("x86_64", None, None),
        ("aarch64", ("asimddp",), False),
        ("arm64", None, False),
    ],
)
def test_only_x86_without_vnni_saturates(architecture, flags, saturates):
    assert CpuInfo("some", architecture, 1, flags).saturates is saturates


def test_this_machine_is_described():
    cpu = read_cpu()
    assert cpu.model
    assert cpu.cores >= 1


def test_versions_name_what_is_installed_and_leave_out_what_is_not():
    versions = software_versions(["numpy", "no-such-package"])
    assert set(versions) == {"python", "system", "numpy"}
