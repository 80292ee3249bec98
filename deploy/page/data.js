"use strict";
// What the page knows of the run, and how it grows. Names are those of deploy/history.py.

const MOST_POINTS = 4000;
const known = {
  run: {}, live: false, began: null, state: "", result: null, classes: null,
  reports: [], evaluations: [], starts: [], snapshots: [],
  policies: [], decisions: [], pictures: [],
  ends: { metrics: 0, timeline: 0, controller: 0, pictures: 0 },
};

// Takes what a server or the file says has come since.
function take(news) {
  Object.assign(known, { began: news.began, state: news.state, result: news.result });
  if (news.classes) known.classes = news.classes;
  for (const [name, journal] of Object.entries(news.journals)) {
    if (journal.end < known.ends[name]) forget(name); // the file has begun anew
    known.ends[name] = journal.end;
    journal.lines.forEach(TAKERS[name]);
  }
  for (const name of ["reports", "snapshots"]) {
    if (known[name].length > MOST_POINTS) known[name] = known[name].filter((_, place) => place % 2 === 0);
  }
}

const KEPT = {
  metrics: ["reports", "evaluations"], timeline: ["starts", "snapshots"],
  controller: ["policies", "decisions"], pictures: ["pictures"],
};
function forget(name) {
  for (const list of KEPT[name]) known[list].length = 0;
}

const TAKERS = {
  metrics(line) {
    const list = line.event === "evaluation" ? known.evaluations : known.reports;
    const [attempt, step] = line.version;
    // A resumed training repeats steps: what the larger attempt says of them stands.
    while (list.length > 0 && list[list.length - 1].version[0] < attempt && list[list.length - 1].step >= step) list.pop();
    list.push({ ...line, step });
  },
  timeline(line) {
    (line.event === "start" ? known.starts : known.snapshots).push(line);
  },
  controller(line) {
    (line.event === "start" ? known.policies : known.decisions).push(line);
  },
  pictures(line) {
    known.pictures.push(line);
  },
};

function last(list) {
  return list.length > 0 ? list[list.length - 1] : null;
}

// The value at a path like "buffer.size", or that a function finds; null where it is not known.
function at(object, path) {
  if (typeof path === "function") return path(object);
  return path.split(".").reduce((value, key) => value?.[key] ?? null, object);
}

// Points [x, y] of lines, over time or steps as the reader chose; what is not known is a gap.
function points(lines, path, factor = 1) {
  const axis = chosenAxis();
  return lines.map((line) => {
    const value = at(line, path);
    return [line[axis], value === null ? null : value * factor];
  });
}

// Lines at which a number was known and another one than before: what publishes it may be slower
// than what records it.
function changes(lines, path) {
  let before = null;
  return lines.filter((line) => {
    const value = at(line, path);
    if (value === null || value === before) return false;
    before = value;
    return true;
  });
}

// Points of how fast a count grew, per second of a clock.
function rates(lines, path, clockPath) {
  const axis = chosenAxis();
  const found = changes(lines, clockPath);
  return found.slice(1).map((line, place) => {
    const seconds = at(line, clockPath) - at(found[place], clockPath);
    const grown = at(line, path) - at(found[place], path);
    return [line[axis], seconds > 0 && grown >= 0 ? grown / seconds : null];
  });
}

// Points of the share that waiting had in a side's seconds, in percent.
function waitingShares(lines, side) {
  const axis = chosenAxis();
  const found = changes(lines, (line) => at(line, `${side}.busy_seconds`) === null ? null : at(line, `${side}.busy_seconds`) + at(line, `${side}.waiting_seconds`));
  return found.slice(1).map((line, place) => {
    const [busy, waiting] = ["busy_seconds", "waiting_seconds"].map(
      (name) => at(line, `${side}.${name}`) - at(found[place], `${side}.${name}`));
    return [line[axis], busy >= 0 && waiting >= 0 ? (100 * waiting) / (busy + waiting) : null];
  });
}

// The priority below which a share of the items lies, from a histogram with bins an octave wide.
function quantile(histogram, share) {
  if (!histogram) return null;
  const total = histogram.counts.reduce((sum, count) => sum + count, 0);
  let below = 0;
  for (const [bin, count] of histogram.counts.entries()) {
    if (count > 0 && below + count >= share * total) {
      const [low, high] = [histogram.edges[bin], histogram.edges[bin + 1]];
      return low * (high / low) ** ((share * total - below) / count);
    }
    below += count;
  }
  return null;
}

// When in the run something happened, by the clock of the timeline.
function elapsedAt(time) {
  const lines = known.snapshots;
  const after = lines.findIndex((line) => line.time >= time);
  if (after >= 0) return Math.max(0, lines[after].elapsed_seconds - (lines[after].time - time));
  const newest = last(lines);
  if (newest) return newest.elapsed_seconds + (time - newest.time);
  return time - (known.policies[0]?.time ?? time);
}

// Decisions with what each earned, which the report for a later one says. What was in force before
// the first is the first arm: the start values.
function judged() {
  const earned = new Map(known.decisions.map((each) => [String(each.earned_by), each.reward]));
  const first = known.decisions[0];
  const before = first && { arm: Object.keys(known.policies[0]?.arms ?? { start: {} })[0], version: first.earned_by, time: known.policies[0]?.time ?? first.time };
  return (before ? [before, ...known.decisions] : []).map((each) => ({
    arm: each.arm,
    elapsed: elapsedAt(each.time),
    reward: earned.get(String(each.version)) ?? null,
  }));
}
