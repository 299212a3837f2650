const layers = data.layers;

const rating = (share) => share === null ? "" : share >= 0.7 ? "good" : share >= 0.4 ? "fair" : "poor";

// -- head, cards, findings ---------------------------------------------------------------------

function head() {
  $("title").textContent = `Where the time of ${data.model} goes`;
  $("subtitle").textContent = `${data.bundle} · target ${data.target} · ${data.cpu} · ${threads} · ${data.runs} runs`;
}

function summary() {
  const whole = data.reconciliation, phases = data.phases;
  const roof = layers.every((row) => row.roof_us !== null) ? layers.reduce((sum, row) => sum + row.roof_us, 0) : null;
  cards([
    [micro(1000 * phases.p50_ms), `an inference; p10 ${number(phases.p10_ms, 3)}, p90 ${number(phases.p90_ms, 3)} ms`],
    [`${number(1000 / phases.p50_ms, 0)} / s`, "inferences, one after the other"],
    [`${number(data.mult_adds / 1e6, 1)} M`, `Mult-Adds; ${number(1e3 * phases.p50_ms / (data.mult_adds / 1e6), 1)} µs a million`],
    [`${number(2 * data.mult_adds / 1e6 / phases.p50_ms, 0)} GFLOP/s`, data.limits ? `of ${number(data.limits.gflops, 0)} at the FMA peak` : "from end to end"],
    [percent(roof === null ? null : roof / whole.operators_us, 0), "of the roofline, all operators together"],
    [percent(whole.explained), `explained by operators; instruments cost ${percent(whole.instruments_us === null ? null : whole.instruments_us / whole.without_instruments_us)}`],
  ]);
}

function finding(row, text) {
  const button = element("button", { textContent: row.name, onclick: () => details(row) });
  return element("li", {}, button, ` (${row.kind}) ${text}`);
}

function findings() {
  const slowest = element("ol"), losses = element("ol");
  for (const row of layers.slice(0, 3)) {
    const limit = row.roof_share === null ? "" : `, at ${percent(row.roof_share, 0)} of what this machine could do (limit: ${row.bound})`;
    slowest.append(finding(row, `${micro(row.time_us)}, ${percent(row.share)} of the time${limit}`));
  }
  $("findings").append(element("div", {}, element("h3", { textContent: "The three slowest operators" }), slowest));
  if (!layers.every((row) => row.roof_us !== null)) return;
  const lost = (row) => row.time_us - row.roof_us;
  for (const row of [...layers].sort((a, b) => lost(b) - lost(a)).slice(0, 3)) {
    losses.append(finding(row, `could be ${micro(Math.max(0, lost(row)))} faster at best (${micro(row.time_us)} → ${micro(row.roof_us)})`));
  }
  $("findings").append(element("div", {}, element("h3", { textContent: "Most to gain" }), losses));
}

// -- charts --------------------------------------------------------------------------------------

function kindsChart() {
  const kinds = data.kinds.map((row) => row.name);
  const work = data.kinds.map((row) => row.flops / Math.max(1, 2 * data.mult_adds));
  const bar = (name, values, color, pattern) => ({
    type: "bar", orientation: "h", name, y: kinds, x: values.map((v) => 100 * v),
    marker: { color, pattern: pattern ? { shape: "/", size: 5, solidity: 0.25 } : undefined },
    text: values.map((v) => percent(v)), textposition: "outside", cliponaxis: false,
    hovertemplate: `%{y}: %{x:.2f} % (${name})<extra></extra>`,
  });
  const traces = [
    bar("paper: Mult-Adds", kinds.map((kind) => data.paper_shares[kind] ?? 0), css("--soft"), true),
    bar("here: Mult-Adds", work, "#56b4e9"),
    bar("here: time", data.kinds.map((row) => row.share), "#d55e00"),
  ];
  Plotly.react("kinds", traces, layout({
    barmode: "group", bargap: 0.25, height: 80 + 66 * kinds.length, showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "reversed" },
    xaxis: { title: { text: "% of the network" }, range: [0, 112] }, yaxis: { autorange: "reversed" },
  }), CONFIG);
}

function barsChart() {
  operatorBars(layers, {
    title: "µs (label: share of the roofline)",
    solid: (row) => row.roof_us === null ? row.time_us : Math.min(row.roof_us, row.time_us), all: (row) => row.time_us,
    label: (row) => row.roof_share === null ? "" : percent(row.roof_share, 0),
    about: (row) => `${micro(row.time_us)}, ${percent(row.share)} of the time` +
      (row.roof_share === null ? "" : `<br>least ${micro(row.roof_us)}: ${percent(row.roof_share, 0)} of the roofline (${row.bound})`),
    onclick: details,
  });
}

function rooflineChart() {
  const rows = layers.filter((row) => row.intensity > 0);
  if (!data.limits || !rows.length) {
    $("roofline-section").hidden = true;
    return;
  }
  const xs = rows.map((row) => row.intensity), ys = rows.map((row) => row.gflops);
  const low = Math.min(...xs) / 2, high = Math.max(...xs) * 2.5, peak = data.limits.gflops;
  const traces = data.limits.levels.map((level, i) => {
    const knee = peak / level.gb_per_s;
    const end = Math.min(Math.max(knee, low), high);
    return {
      x: [low, end], y: [Math.min(peak, low * level.gb_per_s), Math.min(peak, end * level.gb_per_s)], mode: "lines", name: level.name,
      line: { color: css("--soft"), width: 1.5, dash: ["solid", "dash", "dashdot", "dot"][i] }, legendgroup: "roof",
      hovertemplate: `${level.name}: ${number(level.gb_per_s, 0)} GB/s<extra></extra>`,
    };
  });
  traces.push({ x: [low, high], y: [peak, peak], mode: "lines", name: "FMA peak", line: { color: css("--ink"), width: 2 },
    hovertemplate: `FMA peak: ${number(peak, 0)} GFLOP/s<extra></extra>` });
  for (const kind of KINDS) {
    const some = rows.filter((row) => row.kind === kind);
    if (!some.length) continue;
    traces.push({
      x: some.map((row) => row.intensity), y: some.map((row) => row.gflops), mode: "markers", name: kind, customdata: some,
      marker: { color: colourOf(kind), opacity: 0.8, size: some.map((row) => 8 + 70 * Math.sqrt(row.share) * (narrow() ? 0.35 : 0.5)), line: { width: 1, color: css("--panel") } },
      hovertemplate: some.map((row) => `<b>${safe(row.name)}</b><br>${safe(row.shape)}<br>%{y:.1f} GFLOP/s at %{x:.2f} FLOP/byte<br>${percent(row.roof_share, 0)} of the roofline (${row.bound})<extra></extra>`),
    });
  }
  Plotly.react("roofline", traces, layout({
    height: narrow() ? 430 : 520,
    xaxis: { type: "log", title: { text: "FLOP per byte" }, range: [Math.log10(low), Math.log10(high)], ...logTicks(low, high) },
    yaxis: { type: "log", title: { text: "GFLOP/s" }, range: [Math.log10(Math.min(...ys) / 2), Math.log10(peak * 1.6)], ...logTicks(Math.min(...ys) / 2, peak * 1.6) },
    legend: { orientation: "h", y: -0.18, yanchor: "top", x: 0 },
    margin: { l: 8, r: 8, t: 8, b: narrow() ? 150 : 90 },
  }), CONFIG);
  $("roofline").removeAllListeners?.("plotly_click");
  $("roofline").on("plotly_click", (event) => event.points[0].customdata && details(event.points[0].customdata));
}

// -- table -----------------------------------------------------------------------------------------

const COUNTED = ["ipc", "l1d_mpki", "l2_mpki", "llc_mpki", "instructions", "cycles"]; // where the processor lets us
const COLUMNS = [
  ["#", "index", (row) => row.index],
  ["Layer", "name", (row) => row.name, "text"],
  ["Kind", "kind", (row) => row.kind, "text"],
  ["Time µs", "time_us", (row) => number(row.time_us)],
  ["Share", "share", (row) => percent(row.share)],
  ["Roofline", "roof_share", (row) => percent(row.roof_share, 0)],
  ["Limit", "bound", (row) => row.bound ?? "–", "text"],
  ["p50", "p50_us", (row) => number(row.p50_us)],
  ["p90", "p90_us", (row) => number(row.p90_us)],
  ["Mean", "mean_us", (row) => number(row.mean_us)],
  ["First", "first_us", (row) => number(row.first_us)],
  ["GFLOP/s", "gflops", (row) => number(row.gflops)],
  ["GB/s", "gb_per_s", (row) => number(row.gb_per_s)],
  ["FLOP/B", "intensity", (row) => number(row.intensity)],
  ["IPC", "ipc", (row) => number(row.ipc, 2)],
  ["L1 misses / 1000", "l1d_mpki", (row) => number(row.l1d_mpki)],
  ["L2 misses / 1000", "l2_mpki", (row) => number(row.l2_mpki)],
  ["LLC misses / 1000", "llc_mpki", (row) => number(row.llc_mpki)],
  ["Instructions", "instructions", (row) => number(row.instructions, 0)],
  ["Cycles", "cycles", (row) => number(row.cycles, 0)],
  ["Threads", "threads", (row) => row.threads],
  ["Schedule", "schedule", (row) => row.schedule, "text"],
  ["Source", "source", (row) => row.source, "text"],
  ["Shape", "shape", (row) => row.shape, "text"],
].filter(([, key]) => !COUNTED.includes(key) || layers.some((row) => row[key] !== null));
let sorting = { key: "time_us", down: true };

function tableHead() {
  const line = element("tr");
  for (const [title, key, , text] of COLUMNS) {
    const button = element("button", { textContent: title, onclick: () => {
      sorting = { key, down: sorting.key === key ? !sorting.down : !text && key !== "index" };
      tableBody();
    } });
    line.append(element("th", { className: `${text ?? ""} ${key}`, scope: "col" }, button));
  }
  $("operators").tHead.append(line);
  for (const kind of KINDS.filter((k) => layers.some((row) => row.kind === k))) $("kind").append(element("option", { value: kind, textContent: kind }));
  $("filter").oninput = $("kind").onchange = tableBody;
}

function tableBody() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = $("kind").value;
  const text = (row) => [row.name, row.symbol, row.kind, row.shape, row.schedule, row.source, row.bound, ...row.onnx_nodes].join(" ").toLowerCase();
  const chosen = layers.filter((row) => (!kind || row.kind === kind) && words.every((word) => text(row).includes(word)));
  const { key, down } = sorting;
  chosen.sort((a, b) => compare(a[key], b[key], down) || a.index - b.index);
  [...$("operators").tHead.rows[0].cells].forEach((cell, i) => {
    if (COLUMNS[i][1] === key) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
  const body = $("operators").tBodies[0];
  body.replaceChildren(...chosen.map((row) => {
    const line = element("tr", { className: "open", tabIndex: 0, onclick: () => details(row),
      onkeydown: (event) => { if (event.key === "Enter") details(row); } });
    for (const [, name, show, kindOf] of COLUMNS) {
      const cell = element("td", { className: `${kindOf ?? ""} ${name}` });
      if (name === "kind") {
        const chip = element("span", { className: "chip" });
        chip.style.background = colourOf(row.kind);
        cell.append(chip);
      }
      if (name === "name") { cell.title = row.onnx_nodes.join(" ") || row.symbol; }
      if (name === "roof_share") cell.className = rating(row.roof_share);
      cell.append(element("span", { textContent: show(row) }));
      line.append(cell);
    }
    return line;
  }));
  const time = chosen.reduce((sum, row) => sum + row.time_us, 0);
  $("count").textContent = `${chosen.length} of ${layers.length} operators, ${micro(time)}`;
}

// -- tuning ----------------------------------------------------------------------------------------

const TUNING = [
  ["Operator", "symbol", (row) => row.symbol, "text"],
  ["Alone: analytic µs", "analytic_us", (row) => number(row.analytic_us)],
  ["tuned µs", "tuned_us", (row) => number(row.tuned_us)],
  ["times as fast", "speed_up", (row) => number(row.speed_up, 2)],
  ["In the network: analytic µs", "network_analytic_us", (row) => number(row.network_analytic_us)],
  ["tuned µs", "network_tuned_us", (row) => number(row.network_tuned_us)],
  ["times as fast", "network_speed_up", (row) => number(row.network_speed_up, 2)],
  ["Candidates kept", "trials", (row) => row.trials || "–"],
];

function curvesChart() {
  const searched = data.tuning.filter((row) => row.trials > 1);
  $("curves").hidden = !searched.length;
  if (!searched.length) return;
  const traces = searched.map((row) => ({
    x: row.best_us.map((_, i) => i), y: row.best_us.map((us) => row.best_us[0] / us), mode: "lines", name: row.symbol, line: { shape: "hv", width: 2 },
    hovertemplate: `<b>${safe(row.symbol)}</b><br>candidate %{x}: %{y:.2f} times as fast as the first<extra></extra>`,
  }));
  Plotly.react("curves", traces, layout({
    height: 380, xaxis: { title: { text: "candidates measured" } }, yaxis: { title: { text: "best so far, times as fast" } },
    legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0 }, margin: { l: 8, r: 8, t: 8, b: 90 },
  }), CONFIG);
}

// -- parity ----------------------------------------------------------------------------------------

const PARITY = [
  ["#", "index", (row) => row.index],
  ["Layer", "name", (row) => row.name, "text"],
  ["Kind", "kind", (row) => row.kind, "text"],
  ["Verdict", "verdict", (row) => row.verdict, "text"],
  ["In the network: dB", "propagated_snr_db", (row) => number(row.propagated_snr_db)],
  ["× PyTorch’s error", "propagated_ratio", (row) => number(row.propagated_ratio, 2)],
  ["By itself: dB", "isolated_snr_db", (row) => number(row.isolated_snr_db)],
  ["× PyTorch’s error", "isolated_ratio", (row) => number(row.isolated_ratio, 2)],
];

function parityChart() {
  const rows = data.parity_layers.filter((row) => row.propagated_relative_l2 !== null);
  if (!rows.length) return;
  const trace = (name, key, color, dash) => ({ name, mode: "lines+markers", line: { color, dash, width: 2 }, marker: { size: 5 },
    x: rows.map((row) => row.index), y: rows.map((row) => row[key] || null), // a logarithm has no place for no error at all
    hovertemplate: rows.map((row) => `<b>${safe(row.name)}</b><br>${name}: %{y:.2e}<extra></extra>`) });
  const traces = [
    trace("ours, in the network", "propagated_relative_l2", "#d55e00"),
    trace("ours, by itself", "isolated_relative_l2", "#0072b2"),
    trace("PyTorch, float32, in the network", "propagated_torch_relative_l2", css("--soft"), "dash"),
  ];
  Plotly.react("growth", traces, layout({
    height: narrow() ? 400 : 380, xaxis: { title: { text: "operator, in order of execution" } },
    yaxis: { type: "log", title: { text: "relative error" }, exponentformat: "power", dtick: 1 },
    legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0 }, margin: { l: 8, r: 8, t: 8, b: narrow() ? 130 : 90 },
  }), CONFIG);
}

// -- small tables ------------------------------------------------------------------------------------

function fill(id, rows) {
  $(id).tBodies[0].append(...rows.map(([title, value, sum]) =>
    element("tr", { className: sum ? "sum" : "" }, element("th", { scope: "row", textContent: title }), element("td", { textContent: value }))));
}

function smallTables() {
  const whole = data.reconciliation, phases = data.phases;
  const about = { calling: "calling: Python, the arguments and their check", "taking memory": "taking memory", returning: "returning to Python" };
  fill("reconciliation", [
    ...Object.entries(whole.parts_us).map(([name, us]) => [about[name] ?? name, `${micro(us)} (${percent(us / whole.with_instruments_us)})`]),
    ...(whole.entry_us === null ? [["the call around them", "not seen"]] : []),
    ["with instruments", micro(whole.with_instruments_us), true],
    ["without instruments, from end to end", micro(whole.without_instruments_us)],
    ["difference", `${micro(whole.difference_us)} (${percent(whole.difference_us / whole.without_instruments_us)})`],
    ["cost of the instruments, median of pairs", whole.instruments_us === null ? "not seen" : `${micro(whole.instruments_us)} (${percent(whole.instruments_us / whole.without_instruments_us)})`],
    ["explained by operators", percent(whole.explained), true],
  ]);
  fill("phases", [
    ["load", phases.load_seconds === null ? "loaded before" : `${number(1000 * phases.load_seconds, 0)} ms`],
    ["first run", phases.first_ms === null ? "not known" : `${number(phases.first_ms, 3)} ms`],
    [`warm-up, median of ${phases.warm_up_runs}`, phases.warm_up_ms === null ? "not known" : `${number(phases.warm_up_ms, 3)} ms`],
    ["steady, p10", `${number(phases.p10_ms, 3)} ms`],
    ["steady, p50", `${number(phases.p50_ms, 3)} ms`, true],
    ["steady, p90", `${number(phases.p90_ms, 3)} ms`],
  ]);
  fill("limits", data.limits
    ? [["processor", data.limits.cpu], ["threads", data.limits.threads], ["FMA peak, float32", `${number(data.limits.gflops, 0)} GFLOP/s`],
       ...data.limits.levels.map((level) => [`${level.name}${level.kib ? `, ${level.kib} KiB a core` : ""}`, `${number(level.gb_per_s, 0)} GB/s`]),
       ["limits measured on", data.limits.measured_on]]
    : [["limits", "not measured"]]);
  fill("limits", data.counters.map(([title, count]) => [`${title}, an inference`, `${number(count / 1e6, 3)} M`]));
  const missing = Object.keys(data.counters_missing);
  if (missing.length) fill("limits", [["not counted, see below", missing.join(", ")]]);
  const parity = data.parity.outputs ?? [];
  fill("parity", [
    ["verdict", data.parity.state ?? "unknown", true],
    ...parity.flatMap((output) => [
      [`${output.output}: largest error against float64`, output.max_abs?.toExponential(1) ?? "–"],
      ["PyTorch’s own, in float32", output.torch_max_abs?.toExponential(1) ?? "–"],
      ["signal to noise", `${number(output.snr_db, 0)} dB`],
      ...(output.top ?? []).map((top) => [`top-${top.k} agree`, `${top.agreed} of ${top.compared} rows`]),
    ]),
    ...(data.parity.not_checked ? [["not checked", data.parity.not_checked]] : []),
    ["layer by layer", data.parity_layers.length ? "above" : "not given: validate --per-layer --json, then profile --parity"],
  ]);
  $("notes").append(...data.notes.map((note) => element("li", { textContent: note })));
}

// -- details -------------------------------------------------------------------------------------------

let kernels = null;
let shown = null, tab = "source";

async function details(row) {
  shown = row;
  $("details-title").textContent = `${row.name} · ${row.symbol}`;
  const knobs = Object.entries(row.knobs).map(([key, value]) => `${key} = ${value}`).join(", ") || "none";
  $("details-facts").textContent = [
    `${row.kind} ${row.shape}`, `${micro(row.time_us)}, ${percent(row.share)} of the time`,
    `${number(row.gflops)} GFLOP/s, ${number(row.gb_per_s)} GB/s` + (row.roof_share === null ? "" : `, ${percent(row.roof_share, 0)} of the roofline (limit: ${row.bound})`),
    ...(row.cycles === null || row.instructions === null ? [] : [`${number(row.instructions, 0)} instructions in ${number(row.cycles, 0)} cycles, ${number(row.ipc, 2)} a cycle; misses per 1000: L1 ${number(row.l1d_mpki)}, L2 ${number(row.l2_mpki)}, last level ${number(row.llc_mpki)}`]),
    `schedule ${row.schedule} (${row.source}); knobs: ${knobs}`, `ONNX nodes: ${row.onnx_nodes.join(", ") || "none"}`,
  ].join(" · ");
  if (!$("details").open) $("details").showModal();
  kernels ??= JSON.parse(await unpacked("kernels-data"));
  code();
}

function code() {
  const kernel = kernels[shown.symbol];
  document.querySelectorAll("[role=tab]").forEach((button) => button.setAttribute("aria-selected", String(button.dataset.tab === tab)));
  $("code").textContent = kernel[tab] ?? `Not here: ${kernel[`${tab}_missing`]}.`;
  $("code").scrollTop = 0;
}

// -- start -----------------------------------------------------------------------------------------------

function charts() {
  kindsChart();
  barsChart();
  rooflineChart();
  curvesChart();
  parityChart();
}

async function start() {
  head();
  summary();
  findings();
  tableHead();
  tableBody();
  smallTables();
  $("tuning-section").hidden = !data.tuning.length;
  $("parity-section").hidden = !data.parity_layers.length;
  sortable("parity-layers", PARITY, data.parity_layers, { key: "index", down: false });
  sortable("tuning", TUNING, data.tuning, { key: "network_speed_up", down: true });
  document.querySelectorAll("[role=tab]").forEach((button) => { button.onclick = () => { tab = button.dataset.tab; code(); }; });
  $("close").onclick = () => $("details").close();
  await draw(charts);
}
start();
