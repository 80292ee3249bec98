"use strict";
// A chart is a figure with a title, a plot, a sentence that says what it shows, and a table.

const charts = new Map();
const MOST_ROWS = 100;

// Makes an element: attributes, then children (elements or texts). Texts stay texts.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function chosenAxis() {
  return document.getElementById("axis").value;
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
}

const HUES = [212, 28, 150, 350, 265, 45, 185, 320, 95, 235];
// The colour of a series; of more than ten, lighter and darker ones of the same hues.
function colour(place) {
  const hue = HUES[place % HUES.length];
  const second = place % (2 * HUES.length) >= HUES.length;
  const lightness = (isDark() ? 66 : 42) + (second ? (isDark() ? -20 : 22) : 0);
  return `hsl(${hue}, ${second ? 40 : 62}%, ${lightness}%)`;
}

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours > 0 ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

// A number with as many digits as are worth reading.
function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "not known";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function xName(value) {
  return chosenAxis() === "step" ? `step ${Math.round(value).toLocaleString("en")}` : clock(value);
}

// Says of one curve where it began, where it is, and between what it was.
function trend(name, values, unit = "") {
  const there = values.filter(([, y]) => y !== null && y !== undefined);
  if (there.length === 0) return "";
  const [first, newest] = [there[0], there[there.length - 1]];
  const ys = there.map(([, y]) => y);
  const [low, high] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))];
  if (low === high) return `${name}: ${short(low)}${unit} throughout.`;
  return `${name}: ${short(first[1])}${unit} at ${xName(first[0])}, ${short(newest[1])}${unit} at ${xName(newest[0])}; between ${short(low)} and ${short(high)}${unit}.`;
}

// Adds a chart to a section. Its parts are kept when it is drawn again.
function chartIn(section, id, title, note, { wide = false, tall = false } = {}) {
  const plot = make("div", { class: tall ? "plot tall" : "plot", role: "img", id: `plot-${id}` });
  const summary = make("p", { class: "summary", id: `summary-${id}` });
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Data of: ${title}` });
  const details = make("details", {}, make("summary", {}, "Data as a table"), scroll);
  const figure = make("figure", { class: wide ? "chart wide" : "chart", id: `chart-${id}` },
    make("figcaption", {}, make("h3", {}, title), make("p", { class: "summary" }, note)), plot, summary, details);
  section.append(figure);
  const chart = { figure, plot, summary, details, scroll, table: null, drawing: null };
  details.addEventListener("toggle", () => fillTable(chart));
  charts.set(id, chart);
}

// Draws a chart anew; without data it is hidden.
// spec: series of points, `said` in a sentence; `categories` (of bars) or `rows` (of points), else curves.
function draw(id, spec) {
  const chart = charts.get(id);
  const empty = !spec || !spec.series.some((each) => each.data.some((point) => (Array.isArray(point) ? point[1] : point) !== null));
  chart.figure.hidden = empty;
  if (empty) return;
  chart.summary.textContent = spec.said;
  chart.plot.setAttribute("aria-label", spec.said || chart.figure.querySelector("h3").textContent);
  chart.table = tableOf(spec);
  fillTable(chart);
  chart.drawing ??= echarts.init(chart.plot, null, { renderer: "svg" });
  chart.drawing.setOption(options(spec), true);
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function options(spec) {
  const [text, line, card] = [style("--muted"), style("--line"), style("--card")];
  const overTime = !spec.categories;
  const label = { color: text, fontSize: 12, hideOverlap: true };
  const rule = { lineStyle: { color: line } };
  const many = spec.series.length > 1;
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 8, right: 14, top: many ? 34 : 14, bottom: 4, containLabel: true },
    legend: { show: many, icon: "roundRect", type: "scroll", top: 0, left: 0, itemWidth: 14, itemHeight: 8, textStyle: { color: text }, pageTextStyle: { color: text }, pageIconColor: text },
    tooltip: {
      trigger: spec.pointwise ? "item" : "axis", confine: true, backgroundColor: card, borderColor: line,
      textStyle: { color: style("--text"), fontSize: 12 },
      valueFormatter: (value) => (typeof value === "number" ? short(value) + (spec.unit ?? "") : String(value ?? "not known")),
    },
    xAxis: overTime
      ? { type: "value", min: 0, max: "dataMax", axisLabel: { ...label, showMaxLabel: false, formatter: (value) => (chosenAxis() === "step" && !spec.clock ? short(value) : clock(value)) }, axisLine: rule, splitLine: { show: false }, axisPointer: { label: { formatter: ({ value }) => (spec.clock ? clock(value) : xName(value)) } } }
      : { type: "category", data: spec.categories, axisLabel: label, axisLine: rule },
    yAxis: spec.rows
      ? { type: "category", data: spec.rows, axisLabel: { ...label, hideOverlap: false }, axisLine: rule, splitLine: { show: true, ...rule } }
      : { type: spec.log ? "log" : "value", min: spec.min, max: spec.max, minInterval: spec.whole ? 1 : 0, scale: spec.min === undefined && !spec.bars, axisLabel: { ...label, formatter: (value) => short(value) + (spec.unit ?? "") }, splitLine: rule },
    series: spec.series.map((each, place) => ({
      type: "line", showSymbol: false, connectNulls: false, color: colour(each.hue ?? place),
      lineStyle: { width: each.faint ? 1 : 2, type: each.dashed ? "dashed" : "solid" }, ...each,
      areaStyle: each.stack ? { opacity: 0.75 } : undefined,
    })),
  };
}

// The table of curves that share their x, at most so many rows, evenly chosen.
function tableOf(spec) {
  const xs = spec.categories ?? [...new Set(spec.series.flatMap((each) => each.data.map(([x]) => x)))].sort((a, b) => a - b);
  const columns = spec.series.map((each) => (spec.categories ? null : new Map(each.data)));
  const chosen = evenly(xs.map((x, place) => [x, place]), MOST_ROWS);
  return {
    head: [spec.categories ? spec.xName : chosenAxis() === "step" && !spec.clock ? "step" : "time", ...spec.series.map((each) => each.name)],
    rows: chosen.map(([x, place]) => [
      spec.categories ? x : spec.clock ? clock(x) : chosenAxis() === "step" ? Math.round(x) : clock(x),
      ...spec.series.map((each, column) => {
        const value = spec.categories ? each.data[place] : columns[column].get(x);
        return typeof value === "number" ? short(value) : value ?? "";
      }),
    ]),
  };
}

function evenly(list, most) {
  if (list.length <= most) return list;
  return Array.from({ length: most }, (_, place) => list[Math.round((place * (list.length - 1)) / (most - 1))]);
}

// A reader who has scrolled in the table stays there.
function fillTable(chart) {
  if (!chart.details.open || !chart.table) return;
  const { scrollTop, scrollLeft } = chart.scroll;
  chart.scroll.replaceChildren(table(chart.table));
  chart.scroll.scrollTo(scrollLeft, scrollTop);
}

function table({ head, rows }) {
  const numeric = head.map((_, column) => rows.every((row) => row[column] === "" || /^(-?[\d.,:e+-]+|not known)$/.test(String(row[column]))));
  const cell = (tag, value, column, extra = {}) => make(tag, { ...extra, class: numeric[column] ? "number" : null }, String(value));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((name, column) => cell("th", name, column, { scope: "col" })))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, column) => (column === 0 ? cell("th", value, 0, { scope: "row" }) : cell("td", value, column)))))));
}

function resizeCharts() {
  for (const chart of charts.values()) chart.drawing?.resize();
}
