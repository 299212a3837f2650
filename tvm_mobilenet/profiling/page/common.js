"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const number = (value, digits = 1) => value === null || value === undefined ? "–" : value.toFixed(digits);
const percent = (value, digits = 1) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}\u00a0%`;
const micro = (us) => us === null || us === undefined ? "–" : us >= 1000 ? `${(us / 1000).toFixed(2)}\u00a0ms` : `${us.toFixed(1)}\u00a0µs`;
const threads = data.threads === 1 ? "1 thread" : `${data.threads} threads`;
/** For sorting: what is not known comes last, either way. */
const compare = (a, b, down) => a === b ? 0 : a === null ? 1 : b === null ? -1 : (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b) * (down ? -1 : 1);

const KINDS = ["stem", "depthwise", "pointwise", "separable", "conv", "squeeze-excite", "dense", "pool", "other"];
const COLOURS = ["#e69f00", "#0072b2", "#d55e00", "#7b5ea7", "#8a6d3b", "#cc79a7", "#009e73", "#56b4e9", "#8891a0"];
const colourOf = (kind) => COLOURS[Math.max(0, KINDS.indexOf(kind))];

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const narrow = () => window.innerWidth < 640;

function layout(more) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true, ticklabelstandoff: 4 };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", autosize: true,
    font: { family: "system-ui, sans-serif", size: narrow() ? 11 : 13, color: css("--ink") },
    margin: { l: 8, r: 8, t: 8, b: 40 }, hovermode: "closest", dragmode: narrow() ? false : "zoom",
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    hoverlabel: { align: "left" },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}
/** Ticks at 1, 2 and 5 times the powers of ten, written out: plotly's own leave the powers away. */
function logTicks(low, high) {
  const values = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const digit of narrow() ? [1, 3] : [1, 2, 5]) values.push(digit * 10 ** power);
  }
  return { tickmode: "array", tickvals: values, ticktext: values.map((value) => String(Number(value.toPrecision(2)))) };
}

/** A table whose headings sort; columns are [title, key, text of a row, "text" for words]. */
function sortable(id, columns, rows, sorting) {
  const sorted = [...rows].sort((a, b) => compare(a[sorting.key], b[sorting.key], sorting.down));
  $(id).tHead.replaceChildren(element("tr", {}, ...columns.map(([title, key, , text]) => {
    const sort = () => sortable(id, columns, rows, { key, down: sorting.key === key && !sorting.down });
    const cell = element("th", { className: `${text ?? ""} ${key}`, scope: "col" }, element("button", { textContent: title, onclick: sort }));
    if (key === sorting.key) cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    return cell;
  })));
  $(id).tBodies[0].replaceChildren(...sorted.map((row) => element("tr", {}, ...columns.map(([, key, show, text]) =>
    element("td", { className: `${text ?? ""} ${key}`, textContent: show(row) })))));
}
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
const safe = (text) => String(text).replaceAll("<", "‹"); // plotly reads HTML tags

async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/** Draws `charts` with plotly, again when colours or width change, and says so to tests. */
async function draw(charts) {
  document.head.append(element("script", { textContent: await unpacked("plotly-code") }));
  charts();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", charts);
  matchMedia("(max-width: 639px)").addEventListener("change", charts);
  document.body.dataset.ready = "true";
}

/** The summary's cards: [value, label] each. */
function cards(entries) {
  $("cards").append(...entries.map(([value, label]) =>
    element("div", { className: "card" }, element("b", { textContent: value }), element("span", { textContent: label }))));
}

/**
 * A bar for each operator in order of execution: the solid part is the least possible, the pale one what comes on top.
 * `solid` and `all` give a row's lengths, `label` what stands behind its bar, `about` what the pointer shows.
 */
function operatorBars(rows, { title, solid, all, label, about, onclick }) {
  const ordered = [...rows].sort((a, b) => a.index - b.index);
  const short = (row) => `${row.index} ${narrow() ? row.kind : safe(row.name)}`;
  const traces = [];
  for (const kind of KINDS) {
    const some = ordered.filter((row) => row.kind === kind);
    if (!some.length) continue;
    const common = { type: "bar", orientation: "h", y: some.map(short), legendgroup: kind, name: kind, customdata: some,
      hovertemplate: some.map((row) => `<b>${safe(row.name)}</b><br>${safe(row.shape)}<br>${about(row)}<extra></extra>`) };
    traces.push({ ...common, x: some.map(solid), marker: { color: colourOf(kind) } });
    traces.push({ ...common, x: some.map((row) => Math.max(0, all(row) - solid(row))), showlegend: false, marker: { color: colourOf(kind), opacity: 0.35 },
      text: some.map(label), textposition: "outside", cliponaxis: false });
  }
  Plotly.react("bars", traces, layout({
    barmode: "stack", bargap: 0.25, height: 90 + 19 * ordered.length,
    xaxis: { title: { text: title }, range: [0, 1.14 * Math.max(...ordered.map(all))] },
    yaxis: { autorange: "reversed", categoryorder: "array", categoryarray: ordered.map(short), tickfont: { size: 11 }, dtick: 1 },
  }), CONFIG);
  if (!onclick) return;
  $("bars").removeAllListeners?.("plotly_click");
  $("bars").on("plotly_click", (event) => onclick(event.points[0].customdata));
}
