"""Latency: against other runtimes (`bench`), per operator (`profile`), the machine's limits."""

from __future__ import annotations
