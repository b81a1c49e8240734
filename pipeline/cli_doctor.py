"""`doctor`: what can run here at all."""

from __future__ import annotations

from typing import Any

from .cli_output import Answer, Debug, Json, columns, command

EXTRAS = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Optional dependencies that a person can install, and the version that shows them."""


@command
def doctor(as_json: Json = False, debug: Debug = False) -> Answer:
    """Show which runtimes, devices and extras can be used here, and why others cannot."""
    from ..profile.available import runtimes
    from ..profile.devices import cuda_absent
    from ..profile.environment import environment

    where, states = environment(), runtimes()
    versions = where["versions"]
    extras = [{"name": name, "version": versions.get(module)} for name, module in EXTRAS.items()]
    rows = [(state.name, "yes" if state.usable else "no", state.note) for state in states]
    added = [(e["name"], "yes" if e["version"] else "no", e["version"] or _install(str(e["name"]))) for e in extras]
    text = "\n\n".join(
        (
            _machine(where, cuda_absent()),
            columns([("runtime", "usable", "version, or why not"), *rows]),
            columns([("extra", "there", "version, or how to get it"), *added]),
        )
    )
    plain_states = [state._asdict() for state in states]
    return Answer(text, {"runtimes": plain_states, "extras": extras, "environment": where})


def _install(extra: str) -> str:
    return f"pip install 'shipworthy[{extra}]'"


def _machine(where: dict[str, Any], no_gpu: str | None) -> str:
    names = [f"{gpu['name']} (driver {gpu['driver']})" for gpu in where["gpus"]]
    installed = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    lines = [
        f"system   {where['platform']}, Python {where['python']}",
        f"cpu      {where['cpu']}, {where['usable_cores']} of {where['logical_cores']} cores usable",
        f"sets     {', '.join(where['instruction_sets']) or 'none that matters'}",
        f"gpu      {', '.join(names) or (f'none: {no_gpu}' if no_gpu else 'there, but NVML cannot name it')}",
        f"versions {installed}",
    ]
    return "\n".join(lines)
