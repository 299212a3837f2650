"""Machine code that xz makes smaller: x86-64 code with its addresses in streams of their own.

A call, a jump or a load names its place by the distance to it, so that the same place is other
bytes each time. Here each becomes the place's number in the file, most significant byte first, and
those of calls, jumps, branches, pointers and data go to a stream each, as 7-Zip's BCJ2 does with
calls and jumps. TVM's compiler, nearly all that `gpu_carried` packs, gets a sixth smaller than
with the filter for machine code that xz has.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping

KINDS = ("call", "jump", "branch", "pointer", "data")  # of places, four bytes each
_BLOCK = 2**20  # of code; so much is in memory piece by piece
_HERE = rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]"  # ModRM bytes that mean a distance from here
# Bytes that stand before a distance of four bytes; what only looks like them costs a little size.
_OPCODE = re.compile(
    rb"(?P<call>\xe8)|(?P<jump>\xe9)|(?P<branch>\x0f[\x80-\x8f])|(?P<pointer>\xff[\x15\x25])|"
    rb"(?P<data>[\x8d\x8b]%b|[\x48\x4c][\x89\x3b]%b|\x0f[\x10\x28\x6f\x7e\xb6\xb7\xbe\xd6]%b)"
    % (_HERE, _HERE, _HERE)
)


def split(content: bytes) -> dict[str, bytes | bytearray]:
    """The streams of an ELF file: `code` is what is left of it, `layout` what `join` must know."""
    size = len(content)
    places = {kind: bytearray() for kind in KINDS}
    code = bytearray()
    spans = list(_code_spans(content))
    layout = [size, *(number for span in spans for number in span)]
    for start, end, is_code in _blocks(size, spans):
        done = start
        while is_code and (found := _OPCODE.search(content, done, end)):
            after = found.end() + 4
            if after > end:
                break
            distance = int.from_bytes(content[after - 4 : after], "little", signed=True)
            place = _place(distance, after, size) & 0xFFFFFFFF
            places[str(found.lastgroup)] += place.to_bytes(4, "big")
            code += content[done : after - 4]
            done = after
        code += content[done:end]
    return {"code": code, "layout": struct.pack(f"<{len(layout)}Q", *layout), **places}


def join(streams: Mapping[str, bytes | bytearray]) -> Iterator[bytes]:
    """What `split` took apart, block by block."""
    size, *numbers = struct.unpack(f"<{len(streams['layout']) // 8}Q", streams["layout"])
    places = {kind: _fours(streams[kind]) for kind in KINDS}
    code, done = streams["code"], 0
    for start, end, is_code in _blocks(size, list(zip(numbers[::2], numbers[1::2], strict=True))):
        left, pieces = end - start, []
        while is_code and (found := _OPCODE.search(code, done, min(done + left, len(code)))):
            left -= found.end() - done + 4
            if left < 0:
                left += found.end() - done + 4
                break
            after = end - left
            place = int.from_bytes(next(places[str(found.lastgroup)]), "big", signed=True)
            distance = _distance(place, after, size) & 0xFFFFFFFF
            pieces += [code[done : found.end()], distance.to_bytes(4, "little")]
            done = found.end()
        pieces.append(code[done : done + left])
        done += left
        yield b"".join(pieces)


def _place(distance: int, after: int, size: int) -> int:
    """Distances within the file to places from 0 on, all others to the numbers that are left."""
    if -after <= distance < size - after:
        return distance + after
    return distance - size if 0 <= distance < size else distance


def _distance(place: int, after: int, size: int) -> int:
    """The inverse of `_place`."""
    if 0 <= place < size:
        return place - after
    return place + size if -after <= place < 0 else place


def _blocks(size: int, spans: list[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """Start, end, and whether it is code: of blocks that cover the file."""
    done = 0
    for first, last in [*spans, (size, size)]:
        yield done, first, False
        for start in range(first, last, _BLOCK):
            yield start, min(start + _BLOCK, last), True
        done = last


def _code_spans(content: bytes) -> Iterator[tuple[int, int]]:
    """Where the segments that can be run lie in a 64-bit ELF file, in order; none in others."""
    if content[:5] != b"\x7fELF\x02":
        return
    table, entry, count = struct.unpack_from("<Q14xHH", content, 32)
    done = 0
    for number in range(count):
        kind, flags, start, _, _, length = struct.unpack_from(
            "<II4Q", content, table + number * entry
        )
        if kind == 1 and flags & 1 and done <= start < start + length <= len(content):
            yield start, start + length
            done = start + length


def _fours(stream: bytes | bytearray) -> Iterator[bytes]:
    return (stream[at : at + 4] for at in range(0, len(stream), 4))
