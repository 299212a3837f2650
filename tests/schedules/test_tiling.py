"""Tiles cover every output once, and name exactly the taps that are inside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tvm_mobilenet.schedules.templates.tiling import column_runs, row_groups


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
    padding=st.integers(0, 6),
    dilation=st.integers(1, 3),
    pixels=st.integers(1, 16),
)
def test_rows_and_columns_agree_with_the_definition(
    size, kernel, stride, padding, dilation, pixels
):
    axis = {"size": size, "kernel": kernel, "stride": stride, "padding": padding}
    axis["dilation"] = dilation
    span = dilation * (kernel - 1) + 1
    out = (size + 2 * padding - span) // stride + 1
    if out < 1:
        return
    inside = [
        tuple(k for k in range(kernel) if 0 <= o * stride - padding + k * dilation < size)
        for o in range(out)
    ]
    rows = row_groups(out, **axis)
    assert [taps for g in rows for taps in [g.taps] * (g.stop - g.start)] == inside
    assert [g.start for g in rows] == [0, *(g.stop for g in rows[:-1])]
    columns = []
    for run in column_runs(out, pixels, **axis):
        assert run.start == len(columns)
        for _ in range(run.count):
            assert len(run.taps) == run.pixels <= pixels
            columns.extend(run.taps)
    assert columns == inside
