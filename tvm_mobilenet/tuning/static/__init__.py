"""Tuning without the device, nor any other: cycles from llvm-mca and counts under QEMU.

``count``    a kernel compiled for the core and executed once by QEMU: how often each block of its
             code runs, and how many cache lines it brings into L1 and L2
``mca``      LLVM's model of the core: cycles of each block when it repeats
``predict``  both together, as cycles of a candidate; `benchmarks/static_tuning.py` says how far to
             trust them
``tune``     the search with predictions, as `tune --static`
"""

from __future__ import annotations
