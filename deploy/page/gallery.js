"use strict";
// Samples of the buffer at moments of the run: which moment, which classes, in which order.

const gallery = { follows: true, shown: null, sheet: null };
const ORDERS = {
  "class": (a, b) => a.label - b.label || b.confidence - a.confidence,
  "most confident first": (a, b) => b.confidence - a.confidence,
  "least confident first": (a, b) => a.confidence - b.confidence,
  "most difficult first": (a, b) => b.difficulty - a.difficulty,
  "newest first": (a, b) => a.age - b.age,
  "oldest first": (a, b) => b.age - a.age,
};

function makeGallery(parent) {
  const slider = make("input", { type: "range", id: "moment", min: "0", value: "0", step: "1" });
  const labels = make("select", { id: "class" }, make("option", { value: "" }, "all"));
  const order = make("select", { id: "order" }, ...Object.keys(ORDERS).map((name) => make("option", { value: name }, name)));
  parent.append(
    make("p", { class: "summary" }, "Images that synthesizers made, as the buffer held them. Below each: how sure the teacher is of its class; the difficulty (1 - confidence) to the power of the exponent in force; the age in student steps; the class that was asked for, if it is another one. Drawn by priority, so what the student gets wrong is seen more often."),
    make("div", { class: "card toolbar" },
      make("div", { class: "field full" }, make("label", { for: "moment" }, "Moment"), slider, make("output", { id: "moment-name", for: "moment" })),
      make("div", { class: "field" }, make("label", { for: "class" }, "Class"), labels),
      make("div", { class: "field" }, make("label", { for: "order" }, "Order"), order)),
    make("p", { class: "summary", id: "gallery-summary", role: "status" }),
    make("div", { id: "tiles" }));
  slider.addEventListener("input", () => {
    gallery.follows = Number(slider.value) === known.pictures.length - 1;
    drawGallery();
  });
  labels.addEventListener("change", drawGallery);
  order.addEventListener("change", drawGallery);
}

// The samples of a picture, one by one.
function samplesOf(picture) {
  return picture.predicted_classes.map((label, place) => ({
    place, label, target: picture.target_labels[place], confidence: picture.confidences[place],
    difficulty: picture.difficulties[place], age: picture.ages[place],
  }));
}

function drawGallery() {
  const pictures = known.pictures;
  document.getElementById("samples").hidden = pictures.length === 0;
  draw("ages", null);
  if (pictures.length === 0) return;
  const slider = document.getElementById("moment");
  slider.max = String(pictures.length - 1);
  if (gallery.follows) slider.value = slider.max;
  const picture = pictures[Number(slider.value)];
  const name = `${Number(slider.value) + 1} of ${pictures.length}: ${clock(picture.elapsed_seconds)}, step ${picture.step.toLocaleString("en")}`;
  document.getElementById("moment-name").textContent = name;
  slider.setAttribute("aria-valuetext", name);
  drawAges(picture);
  const labels = offerClasses();
  const chosen = labels.value === "" ? null : Number(labels.value);
  const order = document.getElementById("order").value;
  const view = `${picture.file.length} ${picture.time} ${chosen} ${order}`;
  if (view === gallery.shown) return; // nothing has changed, and whoever reads is not disturbed
  gallery.shown = view;
  const samples = samplesOf(picture).filter((each) => chosen === null || each.label === chosen).sort(ORDERS[order]);
  document.getElementById("gallery-summary").textContent = `${samples.length} samples${chosen === null ? "" : ` of class ${chosen}`}, ${order === "class" ? "by class" : order}.`;
  showTiles(picture, samples, order === "class" && chosen === null);
}

// Offers the classes of all pictures to choose from; the choice stays.
function offerClasses() {
  const select = document.getElementById("class");
  const there = [...new Set(known.pictures.flatMap((each) => each.predicted_classes))].sort((a, b) => a - b);
  if (select.options.length !== there.length + 1) {
    const chosen = select.value;
    select.replaceChildren(make("option", { value: "" }, "all"), ...there.map((label) => make("option", { value: label }, String(label))));
    select.value = chosen;
  }
  return select;
}

function showTiles(picture, samples, grouped) {
  const sheet = new Image();
  const tiles = document.getElementById("tiles");
  const groups = grouped ? [...new Set(samples.map((each) => each.label))] : [null];
  const drawn = [];
  const tile = (sample) => {
    const canvas = make("canvas", { width: picture.width, height: picture.height, role: "img", "aria-label": describe(sample) });
    drawn.push([canvas, sample.place]);
    const mixed = sample.target >= 0 && sample.target !== sample.label;
    const lines = [
      grouped ? "" : `class ${sample.label}`, `${(100 * sample.confidence).toFixed(0)} % sure`,
      `diff ${Number(sample.difficulty.toPrecision(2))}`, `age ${sample.age.toLocaleString("en")}`, mixed ? `asked: ${sample.target}` : "",
    ];
    const caption = make("p", { "aria-hidden": "true" }, ...lines.filter(Boolean).map((line) => make("span", {}, line)));
    return make("li", { class: "tile" }, canvas, caption);
  };
  tiles.className = grouped ? "groups" : "";
  tiles.replaceChildren(...groups.map((label) => {
    const members = samples.filter((each) => label === null || each.label === label);
    const list = make("ul", { class: "tiles" }, ...members.map(tile));
    return label === null ? list : make("div", {}, make("h3", {}, `Class ${label}`), list);
  }));
  gallery.sheet = sheet; // of an older choice, what arrives late is not drawn
  sheet.onload = () => {
    if (gallery.sheet !== sheet) return;
    for (const [canvas, place] of drawn) {
      const [left, top] = [(place % picture.columns) * picture.width, Math.floor(place / picture.columns) * picture.height];
      canvas.getContext("2d").drawImage(sheet, left, top, picture.width, picture.height, 0, 0, picture.width, picture.height);
    }
    tiles.dataset.drawn = gallery.shown;
  };
  sheet.src = picture.file;
}

function describe(sample) {
  const asked = sample.target >= 0 ? `, asked for as class ${sample.target}` : "";
  return `Synthetic sample of class ${sample.label}${asked}: teacher ${(100 * sample.confidence).toFixed(1)} % sure, difficulty ${short(sample.difficulty)}, ${sample.age} steps old.`;
}

function drawAges(picture) {
  const { edges, counts } = picture.buffer_ages;
  const total = counts.reduce((sum, count) => sum + count, 0);
  let below = 0;
  const median = edges[counts.findIndex((count) => (below += count) >= total / 2) + 1];
  draw("ages", {
    categories: counts.map((_, bin) => String(Math.round(edges[bin]))), xName: "steps from", bars: true,
    series: [{ name: "samples", type: "bar", data: counts.map((count) => Math.round(count)) }],
    said: `At ${clock(picture.elapsed_seconds)}: half of the samples are younger than about ${short(median)} steps, the oldest drawn is ${short(last(edges) - 1)}.`,
  });
}
