// The runs, the curves of one as they come, and which prompt uses which expert.

import { by, el, json, say, showImage, svg, words } from "./common.js";

/** Milliseconds between two looks at the logs. */
const EVERY = 3000;

const state = {
  name: new URLSearchParams(location.search).get("run"),
  lines: [],
  last: 0,
};

const number = (value) => {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
};

function curve(name, points) {
  const steps = points.map(([step]) => step);
  const values = points.map(([, value]) => value);
  const [first, last] = [steps[0], steps.at(-1)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [width, height, margin] = [300, 100, 4];
  const x = (step) => (last === first ? width / 2 : ((step - first) / (last - first)) * width);
  const y = (value) => (high === low ? height / 2 : margin + ((high - value) / (high - low)) * (height - 2 * margin));
  const line = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const text = `${name}: ${number(values.at(-1))} at step ${last}, between ${number(low)} and ${number(high)} since step ${first}`;
  // A curve of one point is a dot: a line without length with round ends.
  const single = points.length === 1;
  const shape = single ? `${width / 2},${height / 2} ${width / 2},${height / 2}` : line;
  const range = single ? `step ${first}` : `steps ${first} to ${last}`;
  return el(
    "div",
    { className: "chart" },
    el("div", { className: "head" }, el("span", {}, words(name.split("/").at(-1))), el("b", {}, number(values.at(-1)))),
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": text },
      svg("line", { x1: 0, x2: width, y1: height - 1, y2: height - 1 }),
      svg("polyline", { points: shape, class: single ? "point" : "" }),
    ),
    el("div", { className: "range" }, el("span", {}, range), el("span", {}, `${number(low)} to ${number(high)}`)),
  );
}

function showCurves() {
  const series = new Map();
  for (const line of state.lines) {
    for (const [name, value] of Object.entries(line)) {
      if (name === "step" || !Number.isFinite(value)) continue;
      if (!series.has(name)) series.set(name, []);
      series.get(name).push([line.step, value]);
    }
  }
  const groups = new Map();
  for (const name of [...series.keys()].sort()) {
    const group = name.includes("/") ? name.split("/")[0] : "other";
    groups.set(group, [...(groups.get(group) ?? []), name]);
  }
  // What is asked first comes first.
  const rank = (group) => ["loss", "eval"].indexOf(group) >>> 0;
  const ordered = [...groups.keys()].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  by("curves").replaceChildren(
    ...ordered.flatMap((group) => [
      el("h3", {}, words(group)),
      el("div", { className: "charts" }, ...groups.get(group).map((name) => curve(name, series.get(name)))),
    ]),
  );
}

function showExperts(lines) {
  const last = Math.max(...lines.map((line) => line.step));
  const now = lines.filter((line) => line.step === last);
  if (now.length === 0) {
    by("experts").replaceChildren();
    return;
  }
  const most = Math.max(...now.map((line) => line.weights.length));
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "block, prompt"),
    ...Array.from({ length: most }, (_, at) => el("th", { scope: "col" }, `expert ${at + 1}`)),
    el("th", { scope: "col" }, "entropy"),
  );
  const row = (line) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, `${line.block}, ${line.prompt}`),
      ...line.weights.map((weight) => {
        const cell = el("td", {}, weight.toFixed(2));
        cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(60 * weight)}%, transparent)`;
        return cell;
      }),
      el("td", {}, line.entropy.toFixed(3)),
    );
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...now.map(row)));
  by("experts").replaceChildren(
    el("h3", {}, `Experts by prompt, step ${last}`),
    el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Weights of the experts" }, table),
  );
}

/** The pictures in the run's folder, each with its name below. */
function showPictures(query, names) {
  const figure = (name) => {
    const img = el("img", { alt: `Picture ${name}`, loading: "lazy" });
    showImage(img, `/v1/runs/picture?${query}&name=${encodeURIComponent(name)}`).catch(() => {});
    return el("figure", {}, img, el("figcaption", {}, name));
  };
  const key = JSON.stringify([query, names]);
  if (by("pictures").dataset.key === key) return;
  by("pictures").dataset.key = key;
  const heading = names.length > 0 ? [el("h3", {}, "Pictures")] : [];
  by("pictures").replaceChildren(...heading, el("div", { className: "pictures" }, ...names.map(figure)));
}

async function showRun(run) {
  const query = `run=${encodeURIComponent(run.name)}`;
  const part = await json(`/v1/runs/metrics?${query}&after=${state.last}`);
  if (state.name !== run.name) return;
  state.lines.push(...part.lines);
  const before = state.last;
  state.last = Math.max(state.last, part.last);
  by("run").hidden = false;
  by("run-title").textContent = run.name;
  by("run-state").textContent = [run.kind, run.state, `step ${run.step}`, run.chosen_by].filter(Boolean).join(" · ");
  const pictures = await json(`/v1/runs/pictures?${query}`);
  if (state.name !== run.name) return;
  showPictures(query, pictures);
  if (part.lines.length === 0 && before > 0) return;
  showCurves();
  const experts = await json(`/v1/runs/experts?${query}`);
  if (state.name === run.name) showExperts(experts.lines);
}

function choose(name) {
  state.name = name;
  state.lines = [];
  state.last = 0;
  by("curves").replaceChildren();
  by("experts").replaceChildren();
  history.replaceState(null, "", `?run=${encodeURIComponent(name)}`);
  look();
}

function showList(runs) {
  const key = JSON.stringify([state.name, runs]);
  if (by("runs").dataset.key === key) return;
  by("runs").dataset.key = key;
  const focused = document.activeElement?.dataset?.run;
  by("runs").replaceChildren(
    ...runs.map((run) => {
      const facts = [run.kind, run.state, `step ${run.step}`, run.chosen_by].filter(Boolean).join(" · ");
      const button = el(
        "button",
        { type: "button", "aria-pressed": String(run.name === state.name) },
        el("span", { className: "name" }, run.name),
        el("span", { className: "facts" }, facts),
      );
      button.dataset.run = run.name;
      button.addEventListener("click", () => choose(run.name));
      return el("li", {}, button);
    }),
  );
  // The list is made again while somebody moves through it by keyboard.
  if (focused) [...by("runs").querySelectorAll("button")].find((button) => button.dataset.run === focused)?.focus();
}

async function look() {
  try {
    const runs = await json("/v1/runs");
    if (!runs.some((run) => run.name === state.name)) {
      state.name = (runs.find((run) => run.state === "running") ?? runs[0])?.name ?? null;
    }
    showList(runs);
    say(by("status"), runs.length === 0 ? "There are no runs yet." : "");
    const run = runs.find((one) => one.name === state.name);
    if (run) await showRun(run);
  } catch (error) {
    say(by("status"), error.message, true);
  }
}

async function start() {
  for (;;) {
    // Nothing is asked for a page that nobody sees.
    if (!document.hidden) await look();
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}

start();
