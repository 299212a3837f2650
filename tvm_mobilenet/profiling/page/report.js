const networks = data.networks;
const FAMILIES = [...new Set(networks.map((row) => row.model))];
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const familyColour = (model) => PALETTE[FAMILIES.indexOf(model) % PALETTE.length];
const mega = (count) => `${number(count / 1e6, 1)} M`;
const short = (row) => row.model === "mobilenet_v1" ? `${row.alpha}/${row.resolution}` : row.model.replace("mobilenet_", "");

function head() {
  $("subtitle").textContent = `${data.cpu} · target ${data.target} · ${threads} · float32, batch 1, median of at least ${data.runs} runs`;
  const by = (key, down) => [...networks].sort((a, b) => (down ? -1 : 1) * (a[key] - b[key]))[0];
  const fastest = by("ms"), densest = by("us_per_million_mult_adds"), heaviest = by("us_per_million_mult_adds", true);
  const entries = [
    [`${number(fastest.ms, 3)} ms`, `the fastest: ${fastest.network}`],
    [`${number(densest.us_per_million_mult_adds, 1)} µs`, `a million Mult-Adds at best: ${densest.network}`],
    [`${number(heaviest.us_per_million_mult_adds, 1)} µs`, `a million Mult-Adds at worst: ${heaviest.network}`],
  ];
  if (data.separable) {
    entries.push([`${number(data.separable.fewer_mult_adds, 1)} ×`, "fewer Mult-Adds by separable convolutions"]);
    entries.push([`${number(data.separable.less_time, 1)} ×`, `less time: ${percent(data.separable.kept, 0)} of it is kept (full ${number(data.separable.conv_gflops, 0)} GFLOP/s, separable ${number(data.separable.separable_gflops, 0)})`]);
  }
  cards(entries);
}

const span = (values) => [Math.min(...values), Math.max(...values)];
const about = (row) => `<b>${safe(row.network)}</b><br>${mega(row.mult_adds)} Mult-Adds, ${mega(row.parameters)} parameters<br>${number(row.ms, 3)} ms` +
  (row.accuracy === null ? "" : `<br>${row.accuracy} % top-1`) + "<extra></extra>";

function points(rows, x, y) {
  return FAMILIES.filter((model) => rows.some((row) => row.model === model)).map((model) => {
    const some = rows.filter((row) => row.model === model);
    return { x: some.map(x), y: some.map(y), name: model, mode: narrow() ? "markers" : "markers+text", text: some.map(short), textposition: "top center",
      textfont: { size: 10, color: css("--soft") }, marker: { size: 11, color: familyColour(model), line: { width: 1, color: css("--panel") } }, hovertemplate: some.map(about) };
  });
}
const LEGEND = { orientation: "h", y: -0.2, yanchor: "top", x: 0 };
const room = () => ({ l: 8, r: 16, t: 16, b: narrow() ? 170 : 100 });

function latencyChart() {
  const rate = [...networks].sort((a, b) => a.us_per_million_mult_adds - b.us_per_million_mult_adds)[Math.floor(networks.length / 2)].us_per_million_mult_adds / 1e3;
  const xs = networks.map((row) => row.mult_adds / 1e6), ends = [Math.min(...xs) / 1.4, Math.max(...xs) * 1.4];
  const line = { x: ends, y: ends.map((m) => m * rate), mode: "lines", name: `${number(1e3 * rate, 1)} µs a million (median)`, line: { dash: "dash", width: 1.5, color: css("--soft") }, hoverinfo: "skip" };
  Plotly.react("latency", [line, ...points(networks, (row) => row.mult_adds / 1e6, (row) => row.ms)], layout({
    height: narrow() ? 460 : 520, margin: room(), legend: LEGEND,
    xaxis: { type: "log", title: { text: "million Mult-Adds" }, ...logTicks(...ends) }, yaxis: { type: "log", title: { text: "ms" }, ...logTicks(...span(networks.map((row) => row.ms))) },
  }), CONFIG);
}

function accuracyChart() {
  const known = networks.filter((row) => row.accuracy !== null);
  const front = known.filter((row) => row.on_front).sort((a, b) => a.ms - b.ms);
  const line = { x: front.map((row) => row.ms), y: front.map((row) => row.accuracy), mode: "lines", name: "Pareto front", line: { shape: "hv", width: 1.5, color: css("--soft") }, hoverinfo: "skip" };
  Plotly.react("accuracy", [line, ...points(known, (row) => row.ms, (row) => row.accuracy)], layout({
    height: narrow() ? 460 : 480, margin: room(), legend: LEGEND,
    xaxis: { type: "log", title: { text: "ms" }, ...logTicks(...span(known.map((row) => row.ms))) }, yaxis: { title: { text: "top-1 %" } },
  }), CONFIG);
}

function blocksChart() {
  $("blocks-section").hidden = !data.blocks.length;
  if (!data.blocks.length) return;
  const bar = (name, key, color) => ({ type: "bar", name, x: data.blocks.map((row) => row.block), y: data.blocks.map((row) => row[key]), marker: { color },
    text: data.blocks.map((row) => number(row[key], 1)), textposition: narrow() ? "none" : "outside", cliponaxis: false,
    hovertemplate: data.blocks.map((row) => `${row.block}: ${number(row.fewer_mult_adds, 1)} × fewer Mult-Adds, ${number(row.less_time, 1)} × less time<br>${micro(row.conv_us)} as full convolution (${number(row.conv_gflops, 0)} GFLOP/s), ${micro(row.separable_us)} separable (${number(row.separable_gflops, 0)})<extra></extra>`) });
  Plotly.react("blocks", [bar("times fewer Mult-Adds", "fewer_mult_adds", "#56b4e9"), bar("times less time", "less_time", "#d55e00")], layout({
    barmode: "group", height: 380, margin: { l: 8, r: 8, t: 40, b: 60 }, yaxis: { title: { text: "times" } }, xaxis: { tickangle: narrow() ? -90 : 0 },
  }), CONFIG);
}

const times = (ratio) => ratio === null ? "–" : `${number(ratio, 2)} ×`;
const WHOLE = [
  ["MobileNetV1 1.0/224 with", "name", (row) => row.name, "text"],
  ["Mult-Adds", "mult_adds", (row) => row.mult_adds],
  ["Ours ms", "ours", (row) => row.ours],
  ["ONNX Runtime ms", "theirs", (row) => row.theirs],
  ["Ours as fast as it", "ratio", (row) => times(row.ratio)],
];

function fairness() {
  const whole = data.whole_networks;
  $("fairness").hidden = !whole;
  if (!whole) return;
  const work = (conv) => mega(networks.find((row) => row.model === (conv ? "mobilenet_v1_conv" : "mobilenet_v1") && row.alpha === 1 && row.resolution === 224).mult_adds);
  const ours = `With full convolutions the whole network takes ${number(whole.less_time)} times as long, for ${number(whole.fewer_mult_adds)} times the Mult-Adds.`;
  const conv = whole.conv_times_onnxruntime;
  $("fairness-text").textContent = conv === null ? `${ours} ONNX Runtime was not timed beside it.`
    : `${ours} In ONNX Runtime it is ${number(whole.onnxruntime_less_time)} times. ` + (conv >= 1
      ? `Our full convolutions are ${times(conv)} as fast as ONNX Runtime’s, so that the gain is not owed to a slow opponent.`
      : `Our full convolutions reach only ${times(conv)} of ONNX Runtime’s speed: part of the gain is owed to a slow opponent.`);
  const rows = [
    { name: "full convolutions", mult_adds: work(true), ours: number(whole.conv_ms, 2), theirs: number(whole.onnxruntime_conv_ms, 2), ratio: conv },
    { name: "separable ones", mult_adds: work(false), ours: number(whole.separable_ms, 2), theirs: number(whole.onnxruntime_separable_ms, 2), ratio: whole.separable_times_onnxruntime },
    { name: "quotient", mult_adds: times(whole.fewer_mult_adds), ours: times(whole.less_time), theirs: times(whole.onnxruntime_less_time), ratio: null },
  ];
  $("whole").tHead.append(element("tr", {}, ...WHOLE.map(([title, , , text]) => element("th", { scope: "col", className: text ?? "", textContent: title }))));
  $("whole").tBodies[0].append(...rows.map((row) => element("tr", {}, ...WHOLE.map(([, , show, text]) => element("td", { className: text ?? "", textContent: show(row) })))));
}

const COLUMNS = [
  ["Network", "network", (row) => row.network, "text"],
  ["Mult-Adds", "mult_adds", (row) => mega(row.mult_adds)],
  ["ms", "ms", (row) => number(row.ms, 3)],
  ["µs / M", "us_per_million_mult_adds", (row) => number(row.us_per_million_mult_adds, 1)],
  ["p90", "p90_ms", (row) => number(row.p90_ms, 3)],
  ["Images / s", "images_per_s", (row) => number(row.images_per_s, 1)],
  ["Params", "parameters", (row) => `${number(row.parameters / 1e6, 2)} M`],
  ["FMA peak", "share_of_peak", (row) => percent(row.share_of_peak, 0)],
  ["Lib MiB", "library_mib", (row) => number(row.library_mib)],
  ["RAM MiB", "memory_mib", (row) => number(row.memory_mib)],
  ["Top-1 %", "accuracy", (row) => number(row.accuracy)],
  ["Front", "on_front", (row) => row.on_front ? "yes" : "–", "text"],
];
head();
fairness();
sortable("networks", COLUMNS, networks, { key: "mult_adds", down: false });
$("notes").append(...data.notes.map((note) => element("li", { textContent: note })));
draw(() => { latencyChart(); accuracyChart(); blocksChart(); });
