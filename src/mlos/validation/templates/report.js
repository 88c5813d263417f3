"use strict";
// Permalinks: #RUN, #RUN/MODEL, and &category=… &status=… &task=… &sort=… behind either.
// Theme: the system's, until a person chooses.
const root = document.documentElement;
const FILTERS = ["category", "status", "task"];
const KEYS = [...FILTERS, "sort"];
const THEMES = ["system", "light", "dark"];
const runs = [...document.querySelectorAll("section.run")];
const order = new Map([...document.querySelectorAll(".models tbody tr")].map((row, at) => [row, at]));

function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function parse() {
  // Split first, then decode: names may hold any character, and a hash typed by hand any mistake.
  const [path, ...filters] = location.hash.slice(1).split("&");
  const [run, ...model] = path.split("/");
  const state = { run: plain(run), model: plain(model.join("/")) };
  for (const filter of filters) {
    const [key, value] = filter.split("=");
    if (KEYS.includes(key)) state[key] = plain(value || "");
  }
  return state;
}

function hash(state) {
  const path = [state.run, state.model].filter(Boolean).map(encodeURIComponent).join("/");
  return "#" + path + KEYS.filter((k) => state[k]).map((k) => `&${k}=${encodeURIComponent(state[k])}`).join("");
}

function fits(item, state) {
  return (!state.category || item.dataset.category === state.category)
    && (!state.status || item.dataset.status === state.status)
    && (!state.task || item.dataset.tasks.split(" ").includes(state.task));
}

function sort(table, by) {
  const descending = by.startsWith("-");
  const name = by.replace(/^-/, "");
  const heads = [...table.querySelectorAll("thead th")];
  const column = heads.findIndex((head) => head.firstElementChild.dataset.sort === name);
  heads.forEach((head, at) => {
    if (at === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  const key = (row) => row.cells[column].dataset.key;
  const compare = (a, b) => {
    if (column < 0 || key(a) === key(b)) return order.get(a) - order.get(b);
    if (key(a) === "" || key(b) === "") return key(a) === "" ? 1 : -1; // what is not known comes last, either way
    const difference = key(a) - key(b);
    return (Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference) * (descending ? -1 : 1);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

function show() {
  const state = parse();
  const current = runs.find((s) => s.dataset.run === state.run) || runs[0];
  for (const section of runs) section.hidden = section !== current;
  document.querySelector("#runs").value = current.dataset.run;
  for (const control of current.querySelectorAll("[data-filter]")) {
    const value = state[control.dataset.filter] || "";
    if (control.tagName === "SELECT") control.value = value;
    else control.setAttribute("aria-pressed", String(control.dataset.value === value));
  }
  sort(current.querySelector(".models"), state.sort || "");
  let shown = 0;
  let target = null;
  for (const item of current.querySelectorAll("[data-model]")) {
    item.hidden = !fits(item, state);
    if (item.tagName === "TR") shown += !item.hidden;
    else if (state.model === item.dataset.model) target = target || item;
  }
  const all = current.querySelectorAll(".models tbody tr").length;
  const filtered = FILTERS.some((key) => state[key]);
  current.querySelector(".shown").textContent = filtered ? `${shown} of ${all} shown` : "";
  current.querySelector(".empty").hidden = shown > 0;
  current.querySelector(".scroll").hidden = shown === 0;
  if (target) {
    target.hidden = false;
    target.open = true;
    target.scrollIntoView({ block: "start" });
  }
}

function change(changes) {
  const state = { ...parse(), ...changes };
  state.run ||= runs[0].dataset.run;
  location.hash = hash(state);
}

function theme(name) {
  if (name === "system") delete root.dataset.theme;
  else root.dataset.theme = name;
  document.querySelector("#theme").textContent = `theme: ${name}`;
}

function remembered() {
  try {
    return localStorage.getItem("mlos-theme");
  } catch {
    return null; // no storage is allowed here
  }
}

async function copy(button) {
  const link = button.dataset.link;
  const text = link === undefined ? button.previousElementSibling.textContent : new URL(link || location.hash, location.href).href;
  try {
    await navigator.clipboard.writeText(text);
    said(button, "copied");
  } catch {
    if (link === undefined) getSelection().selectAllChildren(button.previousElementSibling);
    else if (link) location.hash = link;
    said(button, link === undefined ? "selected" : "in the address bar");
  }
}

function said(button, text) {
  button.dataset.text ||= button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = button.dataset.text; }, 2000);
}

document.addEventListener("change", (event) => {
  const control = event.target;
  if (control.id === "runs") location.hash = hash({ ...parse(), run: control.value, model: "" });
  else if (control.dataset.filter) change({ [control.dataset.filter]: control.value, model: "" });
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.id === "theme") {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme || "system") + 1) % THEMES.length];
    theme(next);
    try {
      localStorage.setItem("mlos-theme", next);
    } catch {
      // It lasts as long as the page, then.
    }
  } else if (button.matches(".copy")) copy(button);
  else if (button.matches(".clear")) change({ category: "", status: "", task: "", model: "" });
  else if (button.dataset.filter) change({ [button.dataset.filter]: button.dataset.value, model: "" });
  else if (button.dataset.sort) {
    const now = parse().sort;
    change({ sort: now === button.dataset.sort ? "-" + now : button.dataset.sort, model: "" });
  }
});
addEventListener("hashchange", show);
for (const hidden of document.querySelectorAll(".controls, .filters")) hidden.hidden = false;
const chosen = remembered();
if (THEMES.includes(chosen)) theme(chosen);
show();
