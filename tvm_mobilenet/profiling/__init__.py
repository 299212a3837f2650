"""Latency: against other runtimes (`bench`), and the machine's own limit (`peak`)."""

from __future__ import annotations
