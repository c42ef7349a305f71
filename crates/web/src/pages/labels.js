// Labels over their images: sorted by confidence, corrected by a click, written as they are changed.

import { by, el, imagePath, json, request, say, shortKey, showImage, svg, words } from "./common.js";

const PAGE = 60;
const IGNORE = 255;

const state = {
  /** Keys of the list, in its order. */
  keys: [],
  total: 0,
  /** The labels that are edited, as the server answered last. */
  labels: null,
  picture: null,
  /** Index of the chosen class; IGNORE: nobody can tell. */
  part: 0,
  /** Position of the keyboard on the map. */
  cursor: 0,
  /** Positions painted since the last answer. */
  painted: new Map(),
  /** Requests are sent one after the other: the last answer is the newest. */
  sending: Promise.resolve(),
};

const listQuery = (from) => {
  const value = by("value").value;
  const filter = value ? `&filter=${encodeURIComponent(value)}` : "";
  return `/v1/labels?from=${from}&count=${PAGE}&sort=${encodeURIComponent(by("sort").value)}&corrected=${by("corrected").value}${filter}`;
};

async function list(more = false) {
  try {
    const page = await json(listQuery(more ? state.keys.length : 0));
    if (!more) {
      state.keys = [];
      by("cards").replaceChildren();
    }
    state.total = page.images;
    for (const one of page.labels) {
      state.keys.push(one.key);
      by("cards").append(card(one));
    }
    by("more").hidden = state.keys.length >= page.images;
    say(by("status"), `${page.images} images; ${page.corrected} of all are corrected`);
  } catch (error) {
    say(by("status"), error.message, true);
  }
}

function card(one) {
  const img = el("img", { alt: `Image ${one.key}`, loading: "lazy" });
  img.addEventListener("error", () => img.replaceWith(el("span", { className: "blank" })), { once: true });
  showImage(img, imagePath(one.key)).catch(() => img.dispatchEvent(new Event("error")));
  const sure = one.confidence === undefined ? "" : `${Math.round(100 * one.confidence)} %`;
  const button = el(
    "button",
    { type: "button", title: one.key, className: one.corrected ? "same" : "", "aria-pressed": "false" },
    img,
    el("span", { className: "key" }, shortKey(one.key)),
    el("span", { className: "cosine" }, el("span", {}, sure), el("span", { className: "answer" }, one.corrected ? "corrected" : "")),
  );
  button.dataset.key = one.key;
  button.addEventListener("click", () => open(one.key));
  return el("li", {}, button);
}

function markCards() {
  for (const button of by("cards").querySelectorAll("button")) {
    const current = button.dataset.key === state.labels?.key;
    button.setAttribute("aria-pressed", String(current));
    if (!current) continue;
    const corrected = state.labels.corrected_parts.length > 0 || state.labels.attributes.some((one) => one.corrected);
    button.classList.toggle("same", corrected);
    button.querySelector(".answer").textContent = corrected ? "corrected" : "";
  }
}

async function open(key) {
  try {
    await state.sending;
    const labels = await json(`/v1/labels/image?key=${encodeURIComponent(key)}`);
    const blob = await request(imagePath(key)).then((response) => response.blob()).catch(() => null);
    state.picture = blob && (await createImageBitmap(blob));
    state.painted.clear();
    state.labels = labels;
    by("editor").hidden = false;
    by("editor-title").textContent = key;
    history.replaceState(null, "", `?key=${encodeURIComponent(key)}`);
    say(by("saved"), state.picture ? "" : "The image is not in the gallery: only its labels are shown.");
    showAll();
    by("editor").scrollIntoView({ block: "nearest" });
  } catch (error) {
    say(by("status"), error.message, true);
  }
}

function showAll() {
  showClasses();
  drawMap();
  showAttributes();
  markCards();
}

/** The class of a position, what was painted included. */
const partAt = (at) => state.painted.get(at) ?? state.labels.parts[at];
const partName = (part) => (part < state.labels.classes.length ? words(state.labels.classes[part]) : "cannot tell");

function drawMap() {
  const canvas = by("map");
  const { rows, columns, colors, corrected_parts: corrected } = state.labels;
  const [width, height] = state.picture ? [state.picture.width, state.picture.height] : [columns, rows];
  // Lines of one pixel are seen on small images, too.
  const scale = Math.max(1, Math.ceil(512 / height));
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.aspectRatio = `${width} / ${height}`;
  const context = canvas.getContext("2d");
  if (state.picture) context.drawImage(state.picture, 0, 0, canvas.width, canvas.height);
  const [wide, high] = [canvas.width / columns, canvas.height / rows];
  const fixed = new Set(corrected);
  for (let at = 0; at < rows * columns; at += 1) {
    const [x, y] = [(at % columns) * wide, Math.floor(at / columns) * high];
    const part = partAt(at);
    context.globalAlpha = part < colors.length ? 0.45 : 0.6;
    context.fillStyle = colors[part] ?? "#000";
    context.fillRect(x, y, wide, high);
    context.globalAlpha = 1;
    if (fixed.has(at) || state.painted.has(at)) {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(x + 2, y + 2, wide - 4, high - 4);
    }
  }
  if (document.activeElement === canvas) {
    const [x, y] = [(state.cursor % columns) * wide, Math.floor(state.cursor / columns) * high];
    context.lineWidth = 6;
    context.strokeStyle = "#000";
    context.strokeRect(x + 1, y + 1, wide - 2, high - 2);
    context.lineWidth = 3;
    context.strokeStyle = "#ff0";
    context.strokeRect(x + 1, y + 1, wide - 2, high - 2);
  }
  canvas.setAttribute("aria-label", `Part map of ${rows} rows and ${columns} columns over the image`);
}

function sayPlace() {
  const { columns } = state.labels;
  const [row, column] = [Math.floor(state.cursor / columns), state.cursor % columns];
  by("map-place").textContent = `Row ${row + 1}, column ${column + 1}: ${partName(partAt(state.cursor))}`;
}

function showClasses() {
  const fieldset = by("classes");
  if (fieldset.childElementCount > 1) return;
  const { classes, colors } = state.labels;
  const choice = (part, name, color, digit) => {
    const radio = el("input", { type: "radio", name: "part", value: part, checked: part === state.part });
    radio.addEventListener("change", () => (state.part = part));
    const square = svg("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, svg("rect", { width: 1, height: 1, fill: color }));
    return el("label", {}, radio, square, name, el("span", { className: "number" }, digit));
  };
  fieldset.append(
    ...classes.map((name, part) => choice(part, words(name), colors[part], part < 9 ? String(part + 1) : "")),
    choice(IGNORE, "cannot tell", "#000", "0"),
  );
}

function choosePart(part) {
  const radio = document.querySelector(`input[name="part"][value="${part}"]`);
  if (!radio) return;
  radio.checked = true;
  state.part = part;
}

function showAttributes() {
  const row = (one) => {
    const select = el(
      "select",
      { className: one.corrected ? "corrected" : "" },
      // To choose a value that is not sure confirms it: so it is not the chosen one yet.
      ...(one.sure || one.corrected ? [] : [el("option", { value: "?", selected: true, disabled: true }, `${words(one.value)}?`)]),
      ...one.values.map((value) => el("option", { value: `=${value}`, selected: value === one.value && one.sure }, words(value))),
      el("option", { value: "", selected: one.corrected && !one.sure }, "cannot tell"),
    );
    select.addEventListener("change", () => {
      const value = select.value.startsWith("=") ? select.value.slice(1) : null;
      send({ attributes: { [one.attribute]: value } });
    });
    const note = one.corrected ? "corrected" : `${Math.round(100 * one.probability)} %${one.sure ? "" : ", not sure"}`;
    return el("label", {}, words(one.attribute), " ", el("span", { className: "soft" }, note), select);
  };
  const focused = document.activeElement?.closest?.("#attributes") ? [...by("attributes").querySelectorAll("select")].indexOf(document.activeElement) : -1;
  by("attributes").replaceChildren(el("div", { className: "values" }, ...state.labels.attributes.map(row)));
  if (focused >= 0) by("attributes").querySelectorAll("select")[focused]?.focus();
}

/** Writes a correction; the labels as they are then are shown. */
function send(correction) {
  const { key } = state.labels;
  say(by("saved"), "Saving…");
  state.sending = state.sending.then(async () => {
    try {
      const labels = await json("/v1/labels/image", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ key, ...correction }),
      });
      if (state.labels.key !== key) return;
      state.labels = labels;
      for (const part of correction.parts ?? []) state.painted.delete(part.row * labels.columns + part.column);
      say(by("saved"), "Saved.");
      showAll();
    } catch (error) {
      if (state.labels.key !== key) return;
      state.painted.clear();
      say(by("saved"), `Not saved: ${error.message}`, true);
      showAll();
    }
  });
}

function sendPainted(positions) {
  const { columns, classes } = state.labels;
  const parts = positions.map((at) => ({
    row: Math.floor(at / columns),
    column: at % columns,
    class: classes[state.painted.get(at)] ?? null,
  }));
  if (parts.length > 0) send({ parts });
}

function listenToMap() {
  const canvas = by("map");
  let stroke = null;
  const at = (event) => {
    const { rows, columns } = state.labels;
    // The image may be smaller than its element: object-fit keeps its aspect.
    const box = canvas.getBoundingClientRect();
    const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
    const [wide, high] = [canvas.width * scale, canvas.height * scale];
    const x = Math.floor(((event.clientX - box.left - (box.width - wide) / 2) / wide) * columns);
    const y = Math.floor(((event.clientY - box.top - (box.height - high) / 2) / high) * rows);
    return x >= 0 && y >= 0 && x < columns && y < rows ? y * columns + x : null;
  };
  const paint = (position) => {
    if (position === null || stroke.has(position)) return;
    stroke.add(position);
    state.painted.set(position, state.part);
    state.cursor = position;
    drawMap();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    stroke = new Set();
    paint(at(event));
  });
  canvas.addEventListener("pointermove", (event) => stroke && paint(at(event)));
  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, () => {
      if (stroke) sendPainted([...stroke]);
      stroke = null;
    });
  }
  for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => state.labels && drawMap());
  canvas.addEventListener("keydown", (event) => {
    const { rows, columns } = state.labels;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step !== undefined) {
      const next = state.cursor + step;
      const wraps = Math.abs(step) === 1 && Math.floor(next / columns) !== Math.floor(state.cursor / columns);
      if (next >= 0 && next < rows * columns && !wraps) state.cursor = next;
    } else if (event.key === "Enter" || event.key === " ") {
      state.painted.set(state.cursor, state.part);
      sendPainted([state.cursor]);
    } else {
      return;
    }
    event.preventDefault();
    sayPlace();
    drawMap();
  });
}

async function move(by_) {
  const at = state.keys.indexOf(state.labels.key) + by_;
  if (at >= state.keys.length && state.keys.length < state.total) await list(true);
  if (at >= 0 && at < state.keys.length) await open(state.keys[at]);
}

function listen() {
  listenToMap();
  by("query").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["sort", "value", "corrected"]) by(id).addEventListener("change", () => list());
  by("more").addEventListener("click", () => list(true));
  by("previous").addEventListener("click", () => move(-1));
  by("next").addEventListener("click", () => move(1));
  by("undo").addEventListener("click", () => send({ clear: true }));
  document.addEventListener("keydown", (event) => {
    if (!state.labels || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("select, input:not([type=radio])")) return;
    if (event.key === "n") move(1);
    else if (event.key === "p") move(-1);
    else if (event.key === "0") choosePart(IGNORE);
    else if (/^[1-9]$/.test(event.key)) choosePart(Number(event.key) - 1);
  });
}

function option(value, text) {
  return el("option", { value }, text);
}

async function start() {
  listen();
  try {
    const attributes = await json("/v1/labels/attributes");
    by("sort").append(
      option("parts", "confidence of the parts"),
      ...attributes.map((one) => option(one.attribute, `confidence of ${words(one.attribute)}`)),
      option("stored", "order of the files"),
    );
    by("value").append(
      option("", "all"),
      ...attributes.flatMap((one) =>
        one.values.map(({ value, images }) => option(`${one.attribute}:${value}`, `${words(one.attribute)}: ${words(value)} (${images})`)),
      ),
    );
    await list();
    const key = new URLSearchParams(location.search).get("key") ?? state.keys[0];
    if (key !== undefined) await open(key);
  } catch (error) {
    say(by("status"), error.message, true);
  }
}

start();
