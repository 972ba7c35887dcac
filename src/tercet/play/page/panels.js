import { button, el, series } from "./dom.js";
import { isPlain } from "./state.js";

// What stands above the conversation: which columns, how they are asked, and what grades them.
export function columnsView(state, act) {
  return el("fieldset", { class: "picker" }, el("legend", { class: "hidden" }, `Columns, at most ${state.most}`),
    state.columns.map((column, place) => {
      const on = state.shown.includes(column.name);
      return button(column.label, null, () => act.toggle(column.name),
        { "aria-pressed": String(on), class: `chip ${series(place)}`, title: column.about, disabled: !on && state.shown.length >= state.most });
    }));
}

export function settingsView(state, act) {
  const number = (name, label, props) => field(label, el("input", {
    type: "number", name, value: state.settings[name], ...props,
    onchange: (event) => { if (event.target.value !== "" && event.target.checkValidity()) act.set(name, Number(event.target.value)); },
  }));
  const system = el("textarea", { rows: "2", name: "system", onchange: (event) => act.system(event.target.value) });
  system.value = state.system;
  const stop = el("input", { name: "stop", placeholder: "none", onchange: (event) => act.set("stop", event.target.value ? event.target.value.split("|").map(unescaped) : []) });
  stop.value = state.settings.stop.map(escaped).join("|");
  return el("div", { class: "settings" },
    field("System prompt", system, "wide"),
    number("temperature", "Temperature", { min: "0", max: "2", step: "0.05" }),
    number("top_p", "Top-p", { min: "0.01", max: "1", step: "0.01" }),
    number("max_tokens", "Tokens", { min: "1", max: "100000", step: "1" }),
    number("n", "Samples", { min: "1", max: "64", step: "1" }),
    number("seed", "Seed", { min: "0", max: "2147483647", step: "1" }),
    field("Stop at (a|b)", stop),
    el("fieldset", { class: "plain" }, el("legend", { class: "small soft" }, "Asked as plain text, without a chat template"),
      state.columns.map((column) => el("label", { class: "small" }, el("input", {
        type: "checkbox", checked: isPlain(state, column), disabled: !column.server && !column.chat,
        onchange: (event) => act.plain(column.name, event.target.checked),
      }), ` ${column.label}`))));
}

const escaped = (text) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
const unescaped = (text) => text.replace(/\\(n|\\)/g, (_, one) => (one === "n" ? "\n" : "\\"));

function field(label, control, kind = "") {
  return el("label", { class: `field ${kind}` }, el("span", { class: "small soft" }, label), control);
}

export function gradingView(state, config, act) {
  const verifier = el("select", { name: "verifier", onchange: (event) => act.verifier(event.target.value) },
    el("option", { value: "" }, "none"),
    config.verifiers.map((one) => el("option", { value: one.name, selected: one.name === state.verifier }, one.judge ? `${one.name} (LLM judge)` : one.name)));
  const reference = el("textarea", { name: "reference", rows: "2", onchange: (event) => act.reference(event.target.value) });
  reference.value = state.reference;
  return el("div", { class: "settings grading" },
    field("Verifier", verifier), field("Reference answer", reference, "wide"),
    button("Grade", "Grade all answers of this turn", () => act.grade()));
}

export function itemsView(state, config, act) {
  const tasks = Object.entries(config.tasks);
  if (!tasks.length) return null;
  const task = el("select", { name: "task" }, el("option", { value: "" }, "every task"),
    tasks.map(([name, count]) => el("option", { value: name }, `${name} (${count})`)));
  const change = el("select", { name: "change" },
    Object.entries(config.changes).map(([name, text]) => el("option", { value: name }, text)));
  const next = () => act.next(task.value, change.value);
  return el("form", { class: "items", onsubmit: (event) => { event.preventDefault(); next(); } },
    field("Task", task), field("From the first column to the last", change), el("button", { type: "submit" }, "Next evaluation item"),
    el("p", { class: "small soft where", role: "status" }, state.item ? itemText(state.item) : ""));
}

export function itemText(item) {
  const place = item.of ? ` (${item.number + 1} of ${item.of})` : "";
  const shots = item.shots ? `, after ${item.shots} worked turn${item.shots === 1 ? "" : "s"}` : "";
  return `${item.task}, item ${item.item}${place}${shots}`;
}
