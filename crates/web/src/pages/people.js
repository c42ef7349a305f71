// Search by an image, predictions for it, the gallery with its filters.

import { by, el, imagePath, json, lines, request, say, shortKey, showImage, svg, words } from "./common.js";

const TOP = 24;
const PAGE = 48;
/** Predictions that are shown as a picture. */
const DRAWN = new Set(["parsing", "pose", "detection", "search"]);

const state = {
  served: null,
  /** The image that is looked at: { blob, key, inGallery }. */
  query: null,
  /** Chosen filters, `attribute:value`. */
  filters: new Set(),
  /** The key after which the gallery goes on. */
  next: null,
  abort: new AbortController(),
};

const serves = (task) => state.served.models.some((model) => model.task === task);
const searches = () => state.served.models.some((model) => model.searches);
const filterQuery = () => [...state.filters].map((one) => `&filter=${encodeURIComponent(one)}`).join("");

/** An image of the gallery. */
function card(key, match) {
  const kind = match?.same === undefined ? "" : match.same ? "same" : "other";
  const img = el("img", { alt: `Image ${key}`, loading: "lazy" });
  img.addEventListener("error", () => img.replaceWith(el("span", { className: "blank" })), { once: true });
  showImage(img, imagePath(key)).catch(() => img.dispatchEvent(new Event("error")));
  const answer = { same: "same person", other: "not the same" }[kind] ?? "";
  const button = el(
    "button",
    { type: "button", className: kind, title: key },
    img,
    el("span", { className: "key" }, shortKey(key)),
    match ? el("span", { className: "cosine" }, el("span", {}, match.cosine.toFixed(3)), el("span", { className: "answer" }, answer)) : null,
  );
  button.addEventListener("click", () => useKey(key));
  return el("li", {}, button);
}

async function browse(more = false) {
  by("back").hidden = true;
  by("found-title").textContent = "Gallery";
  try {
    const after = more && state.next ? `&after=${encodeURIComponent(state.next)}` : "";
    const page = await json(`/v1/gallery?count=${PAGE}${after}${filterQuery()}`, { signal: state.abort.signal });
    if (!more) by("cards").replaceChildren();
    by("cards").append(...page.keys.map((key) => card(key)));
    state.next = page.next;
    by("more").hidden = page.next === null;
    const none = page.keys.length === 0 && !more;
    const empty = page.images === 0 ? "The gallery is empty." : "No image has these attributes.";
    say(by("search-status"), none ? empty : more ? "" : `${page.images} images`);
  } catch (error) {
    if (error.name !== "AbortError") say(by("search-status"), error.message, true);
  }
}

async function search(signal) {
  const { blob, key, inGallery } = state.query;
  const path = `/v1/search?top=${TOP + 1}${filterQuery()}${inGallery ? `&key=${encodeURIComponent(key)}` : ""}`;
  const options = inGallery ? { method: "POST", signal } : { method: "POST", body: blob, signal };
  const [answer] = await lines(path, options);
  // An image of the gallery is always the most similar one to itself.
  const matches = answer.matches.filter((match) => !inGallery || match.key !== key).slice(0, TOP);
  by("found-title").textContent = "Most similar";
  by("cards").replaceChildren(...matches.map((match) => card(match.key, match)));
  by("more").hidden = true;
  by("back").hidden = false;
  const same = matches.filter((match) => match.same).length;
  if (matches.length === 0) say(by("search-status"), state.filters.size ? "No image has these attributes." : "There is no other image.");
  else if (answer.nobody === undefined) say(by("search-status"), "Sorted by similarity. This model has no same-person threshold.");
  else if (same === 0) say(by("search-status"), "Nobody: no image is similar enough to be the same person.");
  else say(by("search-status"), `${same === matches.length ? "At least " : ""}${same} ${same === 1 ? "image" : "images"} of the same person`);
}

/** Attributes with their probabilities; the unlikely ones are folded. */
function attributeSection(attributes) {
  const rows = Object.entries(attributes)
    .sort((a, b) => b[1] - a[1])
    .map(([name, probability]) => ({ name: words(name).replace(".", ": "), probability, unsure: probability < 0.5 }));
  const likely = rows.filter((row) => !row.unsure);
  const others = rows.filter((row) => row.unsure);
  return el(
    "div",
    {},
    likely.length ? attributeList(likely) : el("p", {}, "No attribute is likelier than not."),
    others.length ? el("details", { className: "others" }, el("summary", {}, `${others.length} less likely`), attributeList(others)) : null,
  );
}

/** Names with their probabilities. */
function attributeList(rows) {
  const list = el("dl", { className: "attributes" });
  for (const { name, probability, unsure } of rows) {
    const percent = `${Math.round(100 * probability)} %`;
    list.append(
      el("dt", { className: unsure ? "unsure" : "" }, name),
      el("dd", {}, el("meter", { min: 0, max: 1, value: probability, "aria-label": `${name}: ${percent}` })),
      el("dd", { className: "number" }, percent),
    );
  }
  return list;
}

const titles = {
  attributes: "Attributes",
  parsing: "Parts",
  pose: "Pose",
  detection: "People found",
  search: "People found with features",
};

/** What a picture shows, for those who do not see it. */
function described(task, line) {
  const of = (prediction) => {
    if (prediction.boxes) return `${prediction.boxes.length} people`;
    if (prediction.joints) return `${prediction.joints.filter((joint) => joint.confidence >= 0.3).length} of ${prediction.joints.length} joints`;
    if (prediction.runs) return [...new Set(prediction.runs.map(([part]) => prediction.classes[part]).filter(Boolean))].map(words).join(", ");
    return "";
  };
  if (line.people) return `${line.people.length} people; ${line.people.map((one) => of(one.prediction)).join("; ")}`;
  return of(line.prediction);
}

async function predict(task, signal) {
  const { blob } = state.query;
  const several = by("several").checked && !["detection", "search"].includes(task);
  const path = `/v1/predict/${task}${several ? "?people=detector" : ""}`;
  const options = { method: "POST", body: blob, signal };
  const [line] = await lines(path, options);
  const part = [el("h3", {}, titles[task])];
  if (DRAWN.has(task)) {
    const response = await request(path, { ...options, headers: { Accept: "image/png" } });
    const text = described(task, line);
    const img = el("img", { alt: `${titles[task]}: ${text}`, src: URL.createObjectURL(await response.blob()) });
    img.addEventListener("load", () => URL.revokeObjectURL(img.src), { once: true });
    part.push(el("figure", {}, img, el("figcaption", {}, text)));
  } else if (line.people) {
    if (line.people.length === 0) part.push(el("p", {}, "Nobody was found."));
    line.people.forEach((one, index) =>
      part.push(el("p", {}, `Person ${index + 1}`), attributeSection(one.prediction.attributes)));
  } else {
    part.push(attributeSection(line.prediction.attributes));
  }
  by("predictions").append(...part);
  by("predicted").hidden = false;
}

/** Part map and attributes of the labels. */
async function labelsOf(key, signal) {
  const labels = await json(`/v1/labels/image?key=${encodeURIComponent(key)}`, { signal });
  const image = await createImageBitmap(state.query.blob);
  const seen = [...new Set(labels.parts)].filter((part) => part < labels.classes.length).sort((a, b) => a - b);
  const names = seen.map((part) => words(labels.classes[part]));
  const canvas = el("canvas", { width: image.width, height: image.height, role: "img", "aria-label": `Parts by the labels: ${names.join(", ")}` });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  context.globalAlpha = 0.5;
  const [width, height] = [image.width / labels.columns, image.height / labels.rows];
  labels.parts.forEach((part, at) => {
    if (part >= labels.classes.length) return;
    context.fillStyle = labels.colors[part];
    context.fillRect((at % labels.columns) * width, Math.floor(at / labels.columns) * height, width, height);
  });
  const square = (part) => {
    const box = svg("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, svg("rect", { width: 1, height: 1, fill: labels.colors[part] }));
    return el("li", {}, box, words(labels.classes[part]));
  };
  const rows = labels.attributes.map((one) => ({
    name: `${words(one.attribute)}: ${words(one.value)}${one.sure ? "" : " ?"}`,
    probability: one.probability,
    unsure: !one.sure,
  }));
  by("predicted").hidden = false;
  by("predictions").append(
    el("h3", {}, "Labels"),
    el("figure", {}, canvas),
    el("ul", { className: "legend" }, ...seen.map(square)),
    attributeList(rows),
    el("p", {}, el("a", { href: `/labels?key=${encodeURIComponent(key)}` }, "Correct these labels")),
  );
}

/** Searches and predicts for the image that is looked at. */
async function run() {
  state.abort.abort();
  state.abort = new AbortController();
  const { signal } = state.abort;
  const { key, blob, inGallery } = state.query;
  by("predictions").replaceChildren();
  by("predicted").hidden = true;
  by("remove").hidden = !(inGallery && state.served.gallery.writable);
  by("add").hidden = inGallery || !state.served.gallery.writable;
  by("add-key").value = key;
  say(by("status"), "Computing…");
  try {
    if (searches()) await search(signal);
    for (const task of blob ? Object.keys(titles).filter(serves) : []) await predict(task, signal);
    if (inGallery && blob && state.served.labels > 0) {
      await labelsOf(key, signal).catch((error) => {
        if (error.status !== 404) throw error;
      });
    }
    say(by("status"), "");
  } catch (error) {
    if (error.name !== "AbortError") say(by("status"), error.message, true);
  }
}

function preview(blob, text) {
  const img = by("preview");
  img.hidden = !blob;
  by("drop-text").hidden = Boolean(blob);
  if (!blob) return;
  img.alt = text;
  img.src = URL.createObjectURL(blob);
  img.addEventListener("load", () => URL.revokeObjectURL(img.src), { once: true });
}

/** Looks at a file. */
function useFile(file) {
  if (!file) return;
  const name = file.name || "pasted";
  state.query = { blob: file, key: name.replace(/\.[^.]{1,4}$/, ""), inGallery: false };
  preview(file, `Chosen image ${name}`);
  run();
}

/** Looks at an image of the gallery. */
async function useKey(key) {
  // An image may be known by its feature only.
  const blob = await request(imagePath(key)).then((response) => response.blob()).catch(() => null);
  state.query = { blob, key, inGallery: true };
  preview(blob, `Image ${key} of the gallery`);
  by("query-title").scrollIntoView({ block: "nearest" });
  run();
}

async function showFilters() {
  if (state.served.labels === 0) return;
  const attributes = await json("/v1/labels/attributes");
  const group = ({ attribute, values }) =>
    el(
      "fieldset",
      {},
      el("legend", {}, words(attribute)),
      ...values.filter((value) => value.images > 0).map(({ value, images }) => {
        const box = el("input", { type: "checkbox", value: `${attribute}:${value}` });
        box.addEventListener("change", () => {
          if (box.checked) state.filters.add(box.value);
          else state.filters.delete(box.value);
          filtersChanged();
        });
        return el("label", {}, box, words(value), el("span", { className: "number" }, images));
      }),
    );
  const some = attributes.filter((one) => one.values.some((value) => value.images > 0));
  by("filter-groups").replaceChildren(...some.map(group));
  by("filters").hidden = false;
  by("filter-clear").addEventListener("click", () => {
    state.filters.clear();
    by("filter-groups").querySelectorAll("input").forEach((box) => (box.checked = false));
    filtersChanged();
  });
}

function filtersChanged() {
  by("filter-count").textContent = state.filters.size ? ` (${state.filters.size})` : "";
  if (state.query && !by("back").hidden) run();
  else browse();
}

function listen() {
  const drop = by("drop");
  by("file").addEventListener("change", (event) => useFile(event.target.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    // Anywhere on the page: an image dropped beside the field would replace the page.
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") useFile(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => useFile(event.clipboardData.files[0]));
  by("several").addEventListener("change", () => state.query && run());
  by("more").addEventListener("click", () => browse(true));
  by("back").addEventListener("click", () => browse());
  by("add").addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = by("add-key").value.trim();
    try {
      await request(`/v1/gallery?key=${encodeURIComponent(key)}`, { method: "POST", body: state.query.blob });
      state.query = { ...state.query, key, inGallery: true };
      say(by("status"), `Added as ${key}.`);
      by("add").hidden = true;
      by("remove").hidden = false;
    } catch (error) {
      say(by("status"), error.message, true);
    }
  });
  by("remove").addEventListener("click", async () => {
    const { key } = state.query;
    if (!confirm(`Remove ${key} from the gallery?`)) return;
    try {
      await request(`/v1/gallery?key=${encodeURIComponent(key)}`, { method: "DELETE" });
      state.query = { ...state.query, inGallery: false };
      by("remove").hidden = true;
      await browse();
      say(by("status"), `Removed ${key}.`);
    } catch (error) {
      say(by("status"), error.message, true);
    }
  });
}

async function start() {
  listen();
  try {
    state.served = await json("/v1/models");
    const several = state.served.models.some((model) => model.detects) && ["attributes", "parsing", "pose"].some(serves);
    by("several-row").hidden = !several;
    await showFilters();
    await browse();
  } catch (error) {
    say(by("status"), error.message, true);
  }
}

start();
