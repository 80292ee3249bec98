"use strict";
// Begins: takes what the file holds, or asks the server for it, and again and again for what is new.

const SAID = {
  running: "running", finished: "finished", interrupted: "interrupted", failed: "failed",
  died: "died: nothing was saved at its end", silent: "no answer",
};
const ASK_SECONDS = { running: 2, ended: 10 };

function drawHead() {
  const { run } = known;
  const name = run.run?.name ?? "run";
  document.title = `${name}: ssdkd run`;
  document.getElementById("name").textContent = name;
  const budget = run.run?.seconds ? `${short(run.run.seconds)} s` : `${short(run.run?.steps)} steps`;
  const method = known.result?.method ?? run.synthesizer?.method ?? "";
  document.getElementById("subtitle").textContent =
    `${method}: ${run.teacher?.factory} teaches ${run.student?.factory}, ${run.teacher?.classes} classes, ${run.teacher?.image_shape?.join(" x ")}, budget ${budget}`;
  drawState(known.state);
  const line = last(known.snapshots) ?? last(known.reports);
  const phase = known.state === "running" && line?.progress ? `${line.progress.phase}, ` : "";
  document.getElementById("progress").textContent = line
    ? `${phase}${clock(line.elapsed_seconds)}, step ${(last(known.reports)?.step ?? 0).toLocaleString("en")}${known.starts.length > 1 ? `, in ${known.starts.length} pipelines` : ""}`
    : "Nothing has been recorded yet.";
}

// Said aloud only when it changes.
function drawState(kind) {
  const state = document.getElementById("state");
  if (state.dataset.kind === kind) return;
  state.dataset.kind = kind;
  state.textContent = SAID[kind] ?? kind;
}

function drawNumbers() {
  const result = known.result ?? {};
  const line = last(known.reports) ?? {};
  const percent = (value) => (value === null || value === undefined ? null : `${value.toFixed(2)} %`);
  const share = (value) => (value === null || value === undefined ? null : `${(100 * value).toFixed(1)} %`);
  const count = (value) => (value === null || value === undefined ? null : value.toLocaleString("en"));
  const seconds = (value) => (value === null || value === undefined ? null : clock(value));
  const newest = last(known.snapshots);
  const numbers = [
    ["Student accuracy", percent(result.student_accuracy ?? last(known.evaluations)?.student_accuracy), "on test data"],
    ["Teacher accuracy", percent(result.teacher_accuracy), "on test data"],
    ["Agreement", percent(result.agreement), "on test data"],
    ["Loyalty", percent(result.loyalty), "on test data"],
    ["Agreement on probes", share(at(line, "probe.after_agreement")), "synthetic, never trained on"],
    ["Distance on probes", at(line, "probe.after_kl") === null ? null : `${short(line.probe.after_kl)} nats`, "KL(teacher || student)"],
    ["Student steps", count(result.student_steps ?? line.step), null],
    ["Wall time", seconds(result.wall_seconds ?? line.elapsed_seconds), "evaluation excluded"],
    ["Samples made", count(result.samples_inverted ?? at(newest ?? {}, "buffer.inserted")), null],
    ["Samples drawn", count(result.samples_drawn ?? line.samples_drawn), null],
    ["Synthesizers waited", share(result.synthesizer_idle_share), "of their time"],
    ["Distiller waited", share(result.distiller_idle_share), "of its time"],
  ];
  document.getElementById("numbers").replaceChildren(...numbers.filter(([, value]) => value !== null).map(([name, value, note]) =>
    make("div", { class: "card" }, make("dt", {}, name), make("dd", {}, value, ...(note ? [make("div", { class: "small" }, note)] : [])))));
  const problems = [result.error, result.controller_failure && `Controller: ${result.controller_failure}`].filter(Boolean);
  document.getElementById("error").replaceChildren(...problems.map((text) => make("p", { class: "card error" }, text)));
}

function drawEnvironment() {
  const target = document.getElementById("environment-tables");
  const view = `${known.starts.length} ${known.result === null}`;
  if (target.dataset.view === view) return; // what a reader has unfolded stays so
  target.dataset.view = view;
  const recorded = last(known.starts)?.environment ?? {};
  const machine = recorded.machine ?? {};
  const rows = [
    ["git revision", recorded.git_revision ?? known.result?.git_revision ?? "not known"],
    ...Object.entries(recorded.versions ?? known.result?.versions ?? {}),
    ...Object.entries(machine).map(([name, value]) => [name.replaceAll("_", " "), Array.isArray(value) ? value.join(", ") || "none" : value]),
  ];
  const list = (entries, head) => table({ head, rows: entries });
  const settings = Object.entries(known.run).map(([name, values]) => make("details", {}, make("summary", {}, name),
    list(Object.entries(values ?? {}).map(([key, value]) => [key, value !== null && typeof value === "object" ? JSON.stringify(value) : String(value)]), ["setting", "value"])));
  target.replaceChildren(
    make("div", { class: "card" }, make("h3", {}, "Pipeline's machine and versions"), list(rows, ["what", "value"])),
    make("div", { class: "card" }, make("h3", {}, "Configuration"), ...settings));
}

function drawAll() {
  drawHead();
  drawSections();
  drawGallery();
  for (const link of document.querySelectorAll("#sections li")) {
    link.hidden = document.querySelector(link.firstChild.getAttribute("href")).hidden;
  }
}

// Asks for what has come since, now and later. A server that is gone is asked again, too.
async function ask() {
  try {
    const { metrics, timeline, controller, pictures } = known.ends;
    const answer = await fetch(`news/${metrics}-${timeline}-${controller}-${pictures}`);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const news = await answer.json();
    if (known.began !== null && news.began !== known.began) location.reload(); // another run
    take(news);
    drawAll();
    document.getElementById("progress").append(`, as of ${new Date().toLocaleTimeString()}`);
  } catch (error) {
    // A run that has said how it ended takes its server with it.
    if (known.state === "running" || known.state === "") drawState("silent");
  }
  setTimeout(ask, 1000 * (known.state === "running" ? ASK_SECONDS.running : ASK_SECONDS.ended));
}

function chooseTheme() {
  const select = document.getElementById("theme");
  const keep = (choice) => {
    document.documentElement.dataset.theme = choice;
    drawAll();
  };
  try {
    select.value = localStorage.getItem("ssdkd-theme") ?? "auto";
  } catch { /* a page that may keep nothing begins as the system is */ }
  document.documentElement.dataset.theme = select.value;
  select.addEventListener("change", () => {
    keep(select.value);
    try {
      localStorage.setItem("ssdkd-theme", select.value);
    } catch { /* likewise */ }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => keep(select.value));
}

function begin() {
  const { live, run, ...news } = JSON.parse(document.getElementById("data").textContent);
  Object.assign(known, { live, run });
  makeSections();
  chooseTheme();
  document.getElementById("axis").addEventListener("change", drawAll);
  new ResizeObserver(resizeCharts).observe(document.getElementById("main"));
  if (!live) take(news);
  drawAll();
  if (live) ask();
}

begin();
