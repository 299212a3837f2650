"""What can go wrong on the way to a device. They cross process borders: one argument, a message."""

from __future__ import annotations


class RemoteError(Exception):
    """The work failed, on the device or on the way; the message is one line."""


class LostDeviceError(RemoteError):
    """The connection to the device was not made or ended: it has gone, or its process crashed."""


class OvertimeError(RemoteError, TimeoutError):
    """The process that does the work did not answer in time, and was ended."""
