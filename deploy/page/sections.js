"use strict";
// The sections but for the gallery: what each shows, made once, drawn at every change.

function section(id, title) {
  const heading = make("h2", { id: `title-${id}` }, title);
  const element = make("section", { id, "aria-labelledby": `title-${id}` }, heading);
  document.getElementById("main").append(element);
  document.getElementById("sections").append(make("li", {}, make("a", { href: `#${id}` }, title)));
  return element;
}

function grid(parent) {
  const element = make("div", { class: "charts" });
  parent.append(element);
  return element;
}

function makeSections() {
  section("results", "Results").append(make("div", { id: "error" }), make("dl", { class: "cards", id: "numbers" }));
  const training = grid(section("training", "Training"));
  chartIn(training, "accuracy", "Accuracy on test data", "Percent right. Measured for you to see, used for no decision.");
  chartIn(training, "kl", "Distance from the teacher", "KL(teacher || student) in nats: of samples the student trains on, and of probes, which it never does.");
  chartIn(training, "agreement", "Agreement with the teacher", "How often both see the same class: on drawn samples the student that is trained, on probes the average of its latest weights.");
  chartIn(training, "loss", "Loss", "Weighted by importance, mean of each interval.");
  chartIn(training, "rate", "Learning rate", "As scheduled over the budget.");
  makeGallery(section("samples", "Synthetic samples"));
  const content = grid(section("buffer", "Buffer"));
  chartIn(content, "classes", "Class balance over time", "Samples in the buffer by the class that the teacher sees.", { wide: true, tall: true });
  chartIn(content, "classes-now", "Class balance now", "Samples of each class.");
  chartIn(content, "priorities", "Priorities now", "Samples by priority, a bar an octave: what is at the right is drawn more often.");
  chartIn(content, "priorities-time", "Priorities over time", "10, 50 and 90 of 100 samples have at most this priority.");
  chartIn(content, "ess", "Effective sample size of the priorities", "As a share of the buffer: 100 % if all samples are drawn alike.");
  chartIn(content, "ages", "Ages of the samples", "In student steps, estimated from one draw, at the moment chosen under Synthetic samples.");
  chartIn(content, "age", "Mean age over time", "Of all samples, in student steps.");
  const control = section("controller", "Controller");
  control.append(make("p", { class: "summary", id: "policy" }), make("div", { class: "scroll card", id: "arms", tabindex: "0", role: "region", "aria-label": "What each arm earned" }), make("p", {}));
  const decisions = grid(control);
  chartIn(decisions, "arms-time", "Arms over time", "Which setting was in force from when on.");
  chartIn(decisions, "rewards", "Rewards", "What each setting earned per second, on probes.");
  chartIn(decisions, "parameters", "Parameters in force", "Those that changed.", { wide: true });
  const timings = grid(section("timings", "Timings"));
  chartIn(timings, "waiting", "Who waited for whom", "Share of their time that each side waited for the other.");
  chartIn(timings, "speed", "Samples per second", "Made by synthesizers, drawn by the student. Logarithmic.");
  chartIn(timings, "synthesizers", "Synthesizers", "Wanted and at work.");
  chartIn(timings, "restarts", "Restarts", "Synthesizers started again after their death, in total.");
  chartIn(timings, "refusals", "Refusals", "Times that the buffer told a side to wait, in total.");
  section("environment", "Environment").append(make("div", { class: "pairs", id: "environment-tables" }));
}

function drawSections() {
  drawNumbers();
  drawTraining();
  drawBuffer();
  drawController();
  drawTimings();
  drawEnvironment();
}

function curves(lines, named, more = {}) {
  const series = Object.entries(named).map(([name, data]) => ({ name, data }));
  const there = series.filter((each) => each.data.some(([, y]) => y !== null));
  const said = there.filter((each) => !more.each?.[each.name]?.faint).map((each) => trend(each.name, each.data, more.unit ?? "")).join(" ");
  return { series: there.map((each) => ({ ...each, ...more.each?.[each.name] })), said, ...more };
}

function drawTraining() {
  const { reports, evaluations } = known;
  const trained = reports.filter((line) => line.step > 0);
  const measured = points(evaluations, "student_accuracy");
  const spec = curves(evaluations, { student: measured }, { unit: " %", each: { student: { showSymbol: true, symbolSize: 7 } } });
  const teacher = known.result?.teacher_accuracy;
  if (teacher && measured.length > 0) {
    spec.series.push({ name: "teacher", dashed: true, data: [[0, teacher], [last(measured)[0], teacher]] });
    spec.said += ` Teacher: ${short(teacher)} %.`;
  }
  draw("accuracy", spec);
  draw("kl", curves(trained, {
    "drawn samples": points(trained, "kl_mean"), probes: points(trained, "probe.after_kl"),
    "10th percentile": points(trained, "kl_quantiles.0"), "90th percentile": points(trained, "kl_quantiles.2"),
  }, { min: 0, each: { "10th percentile": { faint: true, dashed: true, hue: 0 }, "90th percentile": { faint: true, dashed: true, hue: 0 } } }));
  draw("agreement", curves(trained, { "drawn samples": points(trained, "agreement", 100), probes: points(trained, "probe.after_agreement", 100) }, { unit: " %" }));
  draw("loss", curves(trained, { loss: points(trained, "loss") }, { min: 0 }));
  draw("rate", curves(trained, { "learning rate": points(trained, "learning_rate") }, { min: 0 }));
  draw("ess", curves(trained, { "effective size": points(trained, "ess_ratio", 100) }, { unit: " %", min: 0, max: 100 }));
  draw("age", curves(trained, { "mean age": points(trained, "mean_age") }, { min: 0, unit: " steps" }));
}

function drawBuffer() {
  const lines = known.snapshots.filter((line) => line.buffer);
  drawClasses(lines);
  const newest = last(lines.filter((line) => line.priorities));
  const histogram = newest?.priorities;
  const edges = histogram ? histogram.counts.map((_, bin) => short(histogram.edges[bin])) : [];
  draw("priorities", histogram && {
    categories: edges, xName: "priority from", bars: true,
    series: [{ name: "samples", type: "bar", data: histogram.counts }],
    said: `Half of the samples have a priority of at most ${short(quantile(histogram, 0.5))}, one in ten of at least ${short(quantile(histogram, 0.9))}.`,
  });
  const share = (part) => points(lines, (line) => quantile(line.priorities, part));
  draw("priorities-time", curves(lines, { "90 of 100": share(0.9), "50 of 100": share(0.5), "10 of 100": share(0.1) }, { log: true }));
}

function drawClasses(lines) {
  const now = known.classes;
  const names = now ? Object.keys(now.counts) : [];
  const counts = names.map((name) => now.counts[name]);
  const size = counts.reduce((sum, count) => sum + count, 0);
  const rarest = names[counts.indexOf(Math.min(...counts))];
  const commonest = names[counts.indexOf(Math.max(...counts))];
  const said = now && `${now.present} of ${known.run.teacher.classes} classes are there. Rarest: class ${rarest} (${short(now.counts[rarest])}), commonest: class ${commonest} (${short(now.counts[commonest])}); ${short(size / names.length)} on average.`;
  draw("classes-now", now && { categories: names, xName: "class", bars: true, series: [{ name: "samples", type: "bar", data: counts }], said });
  if (lines.some((line) => line.buffer.quantiles)) {
    const part = (place) => points(lines, `buffer.quantiles.${place}`);
    draw("classes", curves(lines, { "commonest class": part(4), "90th percentile": part(3), "median class": part(2), "10th percentile": part(1), "rarest class": part(0) }, { min: 0 }));
    return;
  }
  const seen = last(lines)?.buffer.classes.map((_, label) => label) ?? [];
  const portion = (name) => points(lines, (line) => (line.buffer.size ? (100 * line.buffer.classes[name]) / line.buffer.size : null));
  draw("classes", {
    series: seen.map((name) => ({ name: `class ${name}`, stack: "classes", lineStyle: { width: 0.5 }, data: portion(name) })),
    unit: " %", min: 0, max: 100, said,
  });
}

function drawController() {
  const decisions = judged();
  document.getElementById("controller").hidden = decisions.length === 0;
  if (decisions.length === 0) return;
  const knownArms = Object.assign({}, ...known.policies.map((each) => each.arms));
  const arms = [...new Set([...Object.keys(knownArms), ...decisions.map((each) => each.arm)])];
  const rows = arms.map((arm) => {
    const chosen = decisions.filter((each) => each.arm === arm);
    const rewards = chosen.map((each) => each.reward).filter((reward) => reward !== null);
    const mean = rewards.length > 0 ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null;
    const changes = Object.entries(knownArms[arm] ?? {}).map(([name, value]) => `${name} ${short(value)}`);
    return [arm, mean === null ? "not known" : short(mean), chosen.length, rewards.length, changes.join(", ") || "the configuration's values"];
  });
  document.getElementById("policy").textContent = `Policy: ${last(known.policies)?.policy ?? "not known"}. ${decisions.length} settings in a row. A reward is ${rewardName()} on probes, per second.`;
  document.getElementById("arms").replaceChildren(table({ head: ["arm", "mean reward", "chosen", "measured", "what it sets"], rows }));
  const used = decisions.map((each) => [each.elapsed, each.arm]);
  draw("arms-time", {
    clock: true, rows: arms, pointwise: true, series: [{ name: "arm", type: "scatter", symbolSize: 10, data: used }],
    said: `In force now: ${last(decisions).arm}.`,
  });
  const judgedOnes = decisions.filter((each) => each.reward !== null);
  draw("rewards", {
    clock: true, pointwise: true, bars: true,
    series: arms.map((arm) => ({ name: arm, type: "scatter", symbolSize: 9, data: judgedOnes.filter((each) => each.arm === arm).map((each) => [each.elapsed, each.reward]) })),
    said: trendOfRewards(judgedOnes),
  });
  const lines = known.snapshots.filter((line) => line.params);
  const names = Object.keys(lines[0]?.params ?? {}).filter((name) => name !== "version" && new Set(lines.map((line) => line.params[name])).size > 1);
  draw("parameters", curves(lines, Object.fromEntries(names.map((name) => [name, points(lines, `params.${name}`)])), { min: 0, each: Object.fromEntries(names.map((name) => [name, { step: "end" }])) }));
}

// As in buffer/controller/policy.py.
function rewardName() {
  return known.run.controller?.kwargs?.reward === "agreement" ? "the gain of agreement" : "ln(KL before / KL after)";
}

function trendOfRewards(decisions) {
  const good = decisions.filter((each) => each.reward > 0).length;
  return `${good} of ${decisions.length} settings had a positive one: the student came closer to the teacher.`;
}

function drawTimings() {
  const lines = known.snapshots;
  draw("waiting", curves(lines, { synthesizers: waitingShares(lines, "synthesizers.totals"), "distiller workers": waitingShares(lines, "progress") }, { unit: " %", min: 0, max: 100 }));
  const positive = (data) => data.map(([x, y]) => [x, y > 0 ? y : null]);
  draw("speed", curves(lines, { made: positive(rates(lines, "buffer.inserted", "buffer.seconds")), drawn: positive(rates(lines, "progress.samples_drawn", "progress.elapsed_seconds")) }, { log: true, unit: "/s" }));
  const steps = { step: "end" };
  draw("synthesizers", curves(lines, {
    wanted: points(lines, "synthesizers.wanted"), "at work": points(lines, (line) => line.synthesizers.states.running ?? 0),
  }, { min: 0, each: { wanted: { ...steps, dashed: true }, "at work": steps }, whole: true }));
  const died = lines.some((line) => line.synthesizers.totals.restarts > 0);
  draw("restarts", died ? curves(lines, { restarts: points(lines, "synthesizers.totals.restarts") }, { min: 0, whole: true, each: { restarts: steps } }) : null);
  const refused = lines.some((line) => line.buffer && line.buffer.insert_waits + line.buffer.sample_waits > 0);
  draw("refusals", refused ? curves(lines, { "of inserts": points(lines, "buffer.insert_waits"), "of draws": points(lines, "buffer.sample_waits") }, { min: 0, whole: true }) : null);
  document.getElementById("timings").hidden = lines.length === 0;
}
