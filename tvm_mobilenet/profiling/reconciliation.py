"""The parts of an inference against the whole, measured without instruments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reconciliation:
    """The whole against its parts, in microseconds: means over the quieter half of the runs.

    `operators` + `overhead` = `timed`; `plain` is the network without instruments, from runs in
    between, and `difference` = `timed` - `plain`. `instruments` is what those cost: the median
    difference of neighbouring runs, which a busy machine disturbs alike.
    """

    operators: float
    entry: float | None  # None: only the operators were seen, `timed` is theirs
    exit: float | None
    timed: float
    plain: float
    instruments: float | None  # None: not measured in pairs
    memory: tuple[float, float] | None = None  # of entry and exit: taking and giving back memory

    @property
    def overhead(self) -> float | None:
        """All but the operators."""
        return None if self.entry is None or self.exit is None else self.entry + self.exit

    @property
    def parts(self) -> dict[str, float]:
        """What `timed` is made of, by name; the operators alone where nothing else was seen.

        Calling is Python, the arguments and their check; both ways mostly wait for code and data
        of Python and the virtual machine, which the network has driven out of the caches.
        """
        if self.entry is None or self.exit is None:
            return {"operators": self.operators}
        if self.memory is None:  # not told apart
            around = {"entering": self.entry, "leaving": self.exit}
        else:
            taking, giving = self.memory
            around = {
                "calling": self.entry - taking,
                "taking memory": taking,
                "giving it back": giving,
                "returning": self.exit - giving,
            }
        return {"operators": self.operators, **around}

    @property
    def difference(self) -> float:
        """What the sum is off by, seen from the network without instruments."""
        return self.timed - self.plain

    @property
    def explained(self) -> float:
        """The operators' share of the time from end to end."""
        return self.operators / (self.plain if self.overhead is None else self.timed)
