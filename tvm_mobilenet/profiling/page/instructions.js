const layers = data.layers;
const mega = (count, digits = 3) => `${number(count / 1e6, digits)} M`;
const times = (ratio) => ratio === null ? "–" : number(ratio, 2);

function head() {
  $("title").textContent = `What ${data.model} executes`;
  $("subtitle").textContent = `${data.bundle} · target ${data.target} · ${data.machine} · 1 thread`;
  const floor = layers.reduce((sum, row) => sum + row.floor, 0);
  for (const [value, label] of [
    [mega(data.instructions, 2), "instructions an inference"],
    [mega(floor, 2), "the floor: its Mult-Adds as vector instructions"],
    [times(data.instructions / floor), "times the floor"],
    [mega(data.mult_adds, 1), "Mult-Adds"],
    [percent(data.outside_operators / data.instructions, 2), "outside of operators"],
    [data.parity.state ?? "unknown", "parity with PyTorch"],
  ]) $("cards").append(element("div", { className: "card" }, element("b", { textContent: value }), element("span", { textContent: label })));
  const list = (title, rows, text) => $("findings").append(element("div", {}, element("h3", { textContent: title }),
    element("ol", {}, ...rows.map((row) => element("li", {}, element("strong", { textContent: row.name }), ` (${row.kind}) ${text(row)}`)))));
  list("The three largest operators", layers.slice(0, 3), (row) =>
    `${mega(row.instructions)} instructions, ${percent(row.share)} of all` + (row.over_floor === null ? "" : `, ${times(row.over_floor)} times the floor`));
  const over = (row) => row.instructions - row.floor;
  list("Most above the floor", [...layers].sort((a, b) => over(b) - over(a)).slice(0, 3), (row) =>
    `${mega(over(row))} instructions beyond its ${mega(row.floor)}`);
  $("notes").append(...data.notes.map((note) => element("li", { textContent: note })));
}

function bars() {
  const ordered = [...layers].sort((a, b) => a.index - b.index);
  const short = (row) => `${row.index} ${narrow() ? row.kind : safe(row.name)}`;
  const traces = [];
  for (const kind of KINDS) {
    const rows = ordered.filter((row) => row.kind === kind);
    if (!rows.length) continue;
    const common = { type: "bar", orientation: "h", y: rows.map(short), legendgroup: kind, name: kind,
      hovertemplate: rows.map((row) => `<b>${safe(row.name)}</b><br>${safe(row.shape)}<br>${mega(row.instructions)} instructions, floor ${mega(row.floor)}<extra></extra>`) };
    traces.push({ ...common, x: rows.map((row) => row.floor / 1e6), marker: { color: colourOf(kind) } });
    traces.push({ ...common, x: rows.map((row) => Math.max(0, row.instructions - row.floor) / 1e6), showlegend: false, marker: { color: colourOf(kind), opacity: 0.35 },
      text: rows.map((row) => row.over_floor === null ? "" : times(row.over_floor)), textposition: "outside", cliponaxis: false });
  }
  Plotly.react("bars", traces, layout({
    barmode: "stack", bargap: 0.25, height: 90 + 19 * ordered.length,
    xaxis: { title: { text: "million instructions (label: times the floor)" }, range: [0, 1.14 * Math.max(...ordered.map((row) => row.instructions)) / 1e6] },
    yaxis: { autorange: "reversed", categoryorder: "array", categoryarray: ordered.map(short), tickfont: { size: 11 }, dtick: 1 },
  }), CONFIG);
}

const COLUMNS = [
  ["#", "index", (row) => row.index],
  ["Layer", "name", (row) => row.name, "text"],
  ["Kind", "kind", (row) => row.kind, "text"],
  ["Instructions", "instructions", (row) => mega(row.instructions)],
  ["Share", "share", (row) => percent(row.share)],
  ["Floor", "floor", (row) => mega(row.floor)],
  ["Times", "over_floor", (row) => times(row.over_floor)],
  ["Schedule", "schedule", (row) => row.schedule, "text"],
  ["Source", "source", (row) => row.source, "text"],
  ["Shape", "shape", (row) => row.shape, "text"],
];

head();
sortable("operators", COLUMNS, layers, { key: "instructions", down: true });
draw(bars);
