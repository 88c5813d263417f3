"use strict";
// Permalinks: #RUN, #RUN/MODEL, and &status=… &task=… behind either. Theme: the system's until a person chooses.
const root = document.documentElement;
const FILTERS = ["status", "task"];
const runs = [...document.querySelectorAll("section.run")];

function parse() {
  // Split first, then decode: names may hold any character, and a hash typed by hand any mistake.
  const [path, ...filters] = location.hash.slice(1).split("&");
  const [run, ...model] = path.split("/");
  const state = { run: plain(run), model: plain(model.join("/")) };
  for (const filter of filters) {
    const [key, value] = filter.split("=");
    if (FILTERS.includes(key)) state[key] = plain(value || "");
  }
  return state;
}

function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function hash(state) {
  const path = [state.run, state.model].filter(Boolean).map(encodeURIComponent).join("/");
  return "#" + path + FILTERS.filter((k) => state[k]).map((k) => `&${k}=${encodeURIComponent(state[k])}`).join("");
}

function show() {
  const state = parse();
  const current = runs.find((s) => s.dataset.run === state.run) || runs[0];
  for (const section of runs) section.hidden = section !== current;
  document.querySelector("#runs").value = current.dataset.run;
  for (const key of FILTERS) {
    document.querySelector(`#${key}`).value = state[key] || "";
  }
  for (const item of current.querySelectorAll("[data-model]")) {
    const fits = (!state.status || item.dataset.status === state.status)
      && (!state.task || item.dataset.tasks.split(" ").includes(state.task));
    item.hidden = !fits;
    if (item.tagName === "DETAILS" && state.model === item.dataset.model) {
      item.hidden = false;
      item.open = true;
      item.scrollIntoView({ block: "start" });
    }
  }
}

function change(key, value) {
  const state = { ...parse(), [key]: value };
  state.run ||= runs[0].dataset.run;
  location.hash = hash(state);
}

for (const key of FILTERS) {
  document.querySelector(`#${key}`).addEventListener("change", (e) => change(key, e.target.value));
}
document.querySelector("#runs").addEventListener("change", (e) => { location.hash = "#" + e.target.value; });
document.querySelector("#theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "selected";
  }
});
addEventListener("hashchange", show);
document.querySelector(".controls").hidden = false;
show();
