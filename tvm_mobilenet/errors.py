"""Errors that a user can act on. Each class carries the command line's exit code."""

from __future__ import annotations


class TvmMobilenetError(Exception):
    """Base of all expected errors; the message is one line: what, where, what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line, control characters escaped: names out of files may have both."""
        line = " ".join(super().__str__().split())
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


class UsageError(TvmMobilenetError):
    """The command's arguments are wrong or contradict each other (exit code 2)."""

    exit_code = 2


class InputError(TvmMobilenetError):
    """A model, file, target or option value cannot be used (exit code 3)."""

    exit_code = 3


class MissingToolError(TvmMobilenetError):
    """A tool or package is missing; the message has the command that installs it (exit code 4)."""

    exit_code = 4


class ParityError(TvmMobilenetError):
    """The compiled numbers differ from the reference by more than allowed (exit code 5)."""

    exit_code = 5


class NothingMeasuredError(TvmMobilenetError):
    """A measuring command finished without a single valid measurement (exit code 6)."""

    exit_code = 6
