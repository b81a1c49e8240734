"""What is recorded about the machine."""

from __future__ import annotations

import json
import subprocess
import sys

from shipworthy.profile.environment import (
    busy_note,
    comparison_key,
    cpu_model,
    cpu_ticks,
    environment,
    instruction_sets,
    steal_share,
)

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512f avx512_vnni sse2\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd40\nModel\t\t: Raspberry Pi 5\n"


def test_processors_are_read_from_cpuinfo() -> None:
    """Model and decisive instruction sets are found in both spellings of `/proc/cpuinfo`; absence is no fault."""
    assert (cpu_model(X86), instruction_sets(X86)) == ("AMD EPYC 9R14", ["avx2", "avx512f", "avx512_vnni"])
    assert (cpu_model(ARM), instruction_sets(ARM)) == ("Raspberry Pi 5", ["asimd", "asimddp", "i8mm"])
    assert (cpu_model(""), instruction_sets("")) == (None, [])


def test_the_environment_is_plain_data_with_versions() -> None:
    """It survives JSON unchanged and names the installed runtimes' versions."""
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert all(found["versions"][name] for name in ("numpy", "onnxruntime", "torch"))
    assert found["logical_cores"] >= 1


def test_the_environment_imports_no_runtime() -> None:
    """Reading versions costs no import of torch or onnxruntime."""
    code = (
        "import sys; from shipworthy.profile.environment import environment; environment();"
        "print([m for m in ('torch', 'onnxruntime', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_must_be_equal() -> None:
    """Load and memory may differ between comparable results; processor, governor and runtime version may not."""
    here = environment()
    assert comparison_key(here | {"load_average": [9.0, 9.0, 9.0], "memory_bytes": 1}) == comparison_key(here)
    for other in ({"cpu": "other"}, {"governor": "powersave"}, {"versions": {"onnxruntime": "0.1"}}):
        assert comparison_key(here | other) != comparison_key(here)


def test_steal() -> None:
    """The stolen share is that of the ticks between two readings."""
    assert steal_share((1000, 10), (1200, 60)) == 0.25
    assert steal_share((1000, 10), (1000, 10)) == 0.0
    ticks = cpu_ticks()
    assert ticks is None or ticks[0] > ticks[1] >= 0


def test_a_machine_is_busy_by_the_work_of_others_not_by_our_own() -> None:
    """The load average is asked only where the system tells nothing better."""
    here = {"load_average": [1.9, 1.0, 1.0], "usable_cores": 2}
    assert True not in busy_note(0.0, here).values()  # what was just trained here raised the load average
    assert busy_note(0.8, here) == {"other processes kept 0.8 of 2 usable cores busy": True}
    assert busy_note(None, here) == {"the machine was busy before: load 1.9 on 2 usable cores": True}
    assert True not in busy_note(None, here | {"load_average": None}).values()
