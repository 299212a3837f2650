"""Loop nests with knobs, for every CPU: what differs between CPUs is the choice of knobs."""
