"""LLVM's machine code analyser: cycles of a piece of assembly that repeats, by a core's model."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tvm_mobilenet.errors import InputError, MissingToolError

ITERATIONS = 60  # enough that the start and the end do not count


@functools.cache
def llvm_tool(name: str) -> str:
    """LLVM's program of that name, of the newest version installed. MissingToolError: none."""
    places = [Path("/usr/bin"), Path("/usr/local/bin")]
    versioned = [p for place in places for p in place.glob(f"{name}-*") if p.name[-1].isdigit()]
    newest = max(versioned, key=lambda path: int(path.name.rsplit("-")[-1]), default=None)
    found = str(newest) if newest else shutil.which(name)
    if found is None:
        raise MissingToolError(f"{name} is missing; run: apt-get install llvm")
    return found


def cycles(blocks: Sequence[Sequence[str]], triple: str, cpu: str) -> list[float]:
    """Cycles of one execution of each block, as the body of a loop with its data in L1.

    blocks: instructions, in the syntax of the triple's assembler. Raises InputError when llvm-mca
    does not know the core or an instruction, MissingToolError.
    """
    text = ""
    for i, block in enumerate(blocks):
        text += "\n".join((f"# LLVM-MCA-BEGIN b{i}", *block, f"# LLVM-MCA-END b{i}", ""))
    command = [llvm_tool("llvm-mca"), f"-mtriple={triple}", f"-mcpu={cpu}", "-json"]
    command += [f"-iterations={ITERATIONS}", "-instruction-info=false", "-resource-pressure=false"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0 or "is not a recognized processor" in done.stderr:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "not a" in line]
        raise InputError(f"llvm-mca, {cpu}: {(lines or ['failed'])[0]}")
    regions = json.loads(done.stdout)["CodeRegions"]
    if len(regions) != len(blocks):
        raise InputError(f"llvm-mca, {cpu}: {len(regions)} of {len(blocks)} blocks analysed")
    return [r["SummaryView"]["TotalCycles"] / r["SummaryView"]["Iterations"] for r in regions]


def hand_written(assembly: str) -> list[list[str]]:
    """The instructions of each inline assembly in a function, of its loop if it has one."""
    found = []
    for inside in re.findall(r"^\s*//APP$(.*?)^\s*//NO_APP$", assembly, re.MULTILINE | re.DOTALL):
        lines = [line.strip().replace("\t", " ") for line in inside.splitlines() if line.strip()]
        for place, line in enumerate(lines):
            branch = re.match(r"b\.ne (\S+)$", line)
            if branch and f"{branch[1]}:" in lines[:place]:
                lines = lines[lines.index(f"{branch[1]}:") + 1 : place + 1]
                break
        found.append([line for line in lines if not line.endswith(":")])
    return found
