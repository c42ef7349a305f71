// What the pages share: elements, requests with the token, images of the gallery.

/** An element with properties (or attributes) and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const by = (id) => document.getElementById(id);

/** The problem that the server answered with. */
export class Problem extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// The token stays in this tab.
const token = () => sessionStorage.getItem("token");

/** Asks for the token and resolves when it was given. */
function askForToken() {
  return new Promise((resolve) => {
    const input = el("input", { type: "password", required: true, autocomplete: "off" });
    const form = el("form", { className: "token" }, el("label", {}, "Token ", input), el("button", {}, "Use"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem("token", input.value.trim());
      form.remove();
      asking = null;
      resolve();
    });
    document.querySelector("header").append(form);
    input.focus();
  });
}

let asking = null;

/** A request; asks for the token where one is needed, and throws a Problem. */
export async function request(path, options = {}) {
  for (;;) {
    const used = token();
    const headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401) {
      // Another request may have been given a token meanwhile.
      if (token() === used) sessionStorage.removeItem("token");
      if (!token()) await (asking ??= askForToken());
      continue;
    }
    const problem = await response.json().catch(() => null);
    const detail = problem?.detail ?? `${response.status} ${response.statusText}`;
    throw new Problem(response.status, problem?.hint ? `${detail} (${problem.hint})` : detail);
  }
}

export const json = async (path, options) => (await request(path, options)).json();

/** The objects of JSON lines. */
export async function lines(path, options) {
  const text = await (await request(path, options)).text();
  return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

export const imagePath = (key) => `/v1/gallery/image?key=${encodeURIComponent(key)}`;

/** Shows an image of the server. An <img> cannot send the token, so then the bytes are fetched. */
export async function showImage(img, path) {
  if (!token()) {
    img.src = path;
    return;
  }
  const blob = await (await request(path)).blob();
  img.addEventListener("load", () => URL.revokeObjectURL(img.src), { once: true });
  img.src = URL.createObjectURL(blob);
}

/** The end of a key, which tells images apart. */
export const shortKey = (key) => key.split("/").slice(-2).join("/");

/** A name of a vocabulary as words. */
export const words = (name) => name.replaceAll("_", " ");

/** Says something in a status line; an error in its color. */
export function say(element, text, wrong = false) {
  element.textContent = text;
  element.classList.toggle("wrong", wrong);
}
