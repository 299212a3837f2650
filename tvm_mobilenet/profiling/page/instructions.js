const layers = data.layers;
const mega = (count, digits = 3) => `${number(count / 1e6, digits)} M`;
const times = (ratio) => ratio === null ? "–" : number(ratio, 2);

function head() {
  $("title").textContent = `What ${data.model} executes`;
  $("subtitle").textContent = `${data.bundle} · target ${data.target} · ${data.machine} · 1 thread`;
  const floor = layers.reduce((sum, row) => sum + row.floor, 0);
  cards([
    [mega(data.instructions, 2), "instructions an inference"],
    [mega(floor, 2), "the floor: its Mult-Adds as vector instructions"],
    [times(data.instructions / floor), "times the floor"],
    [mega(data.mult_adds, 1), "Mult-Adds"],
    [percent(data.outside_operators / data.instructions, 2), "outside of operators"],
    [data.parity.state ?? "unknown", "parity with PyTorch"],
  ]);
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
  operatorBars(layers, {
    title: "million instructions (label: times the floor)",
    solid: (row) => row.floor / 1e6, all: (row) => row.instructions / 1e6, label: (row) => row.over_floor === null ? "" : times(row.over_floor),
    about: (row) => `${mega(row.instructions)} instructions, floor ${mega(row.floor)}`,
  });
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
