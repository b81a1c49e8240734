"""The errors of measuring. Each carries the exit code that a command line should end with."""

from __future__ import annotations


class ProfileError(Exception):
    """A measurement failed: a runner, a runtime or a device broke while it worked."""

    exit_code = 4


class BadPlan(ProfileError):
    """What the user gave cannot be measured: settings, inputs, or a file that is not a model."""

    exit_code = 2


class RuntimeAbsent(BadPlan):
    """A runtime is not installed here, or the device it needs is not there; the message says which."""
