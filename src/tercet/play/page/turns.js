import { button, el, series } from "./dom.js";
import { surprise, tokenView } from "./tokens.js";
import { traceView } from "./traces.js";
import { shareView, verdictView } from "./verdicts.js";

// The conversation: under each question the answers of all columns side by side. `act` has what can be done; a frozen
// page has none of it.
export function conversationView(state, path, act = null) {
  const cells = new Map();
  const list = el("ol", { class: "turns" }, path.map((node, depth) => el("li", { class: "exchange" },
    askedView(state, node, depth, path, act),
    el("div", { class: "answers", data: { columns: state.shown.length } },
      state.shown.map((name, place) => {
        const cell = cellView(state, node, name, place, act);
        cells.set(`${node.id}/${name}`, cell);
        return cell.root;
      })))));
  return { list, cells };
}

function askedView(state, node, depth, path, act) {
  const box = el("div", { class: "asked" });
  const siblings = act?.siblings(path, depth) ?? [node];
  const place = siblings.indexOf(node);
  const show = () => box.replaceChildren(...[
    el("p", { class: "who small soft" }, node.raw ? "text" : "user"),
    el("p", { class: "words" }, node.user),
    act ? el("div", { class: "tools" },
      button("Edit", "Edit this turn; the answers so far stay as another branch", edit),
      siblings.length > 1 ? [
        button("‹", "Branch before", () => act.branch(path, depth, place - 1), { disabled: place === 0 }),
        el("span", { class: "small soft" }, `${place + 1} of ${siblings.length}`),
        button("›", "Next branch", () => act.branch(path, depth, place + 1), { disabled: place === siblings.length - 1 }),
      ] : null) : null].filter(Boolean));
  const edit = () => {
    const field = el("textarea", { rows: "3", "aria-label": "The turn" });
    field.value = node.user;
    const form = el("form", { onsubmit: (event) => { event.preventDefault(); act.edit(path, depth, field.value); } },
      field, el("div", { class: "tools" }, el("button", { type: "submit" }, "Ask again"), button("Cancel", null, show)));
    box.replaceChildren(form);
    field.focus();
  };
  show();
  return box;
}

function cellView(state, node, name, place, act) {
  const column = state.columns.find((one) => one.name === name);
  const root = el("article", { class: `side answer ${series(column.place ?? place)}`, "aria-label": `Answer of ${column.label}` });
  const before = state.shown[place - 1];
  const how = {
    name, label: column.label, before, shade: () => state.shade, scores: act?.scores(node, column),
    columns: () => state.shown.map((one) => state.columns.find((other) => other.name === one)),
  };
  let view = null;
  const update = () => {
    const answer = node.answers[name];
    const sample = answer?.samples[answer.shown ?? 0];
    view = sample && !sample.trace && sample.edited === undefined && !sample.editing ? tokenView(sample, how) : null;
    root.replaceChildren(
      el("h2", {}, column.label, answer && act ? statusView(answer) : null),
      ...(answer ? answerParts(answer, sample, view) : [act ? button(`Ask ${column.label}`, null, () => act.ask(node, name)) : el("p", { class: "soft small" }, "Not asked.")]));
  };
  const answerParts = (answer, sample, tokens) => [
    answer.error ? el("p", { class: "note bad small" }, answer.error) : null,
    sample ? body(sample, tokens) : null,
    sample ? factsView(answer, sample) : null,
    shareView(answer.samples.map((one) => one.verdict)),
    sample?.verdict ? verdictView(sample.verdict, answer.shown ? null : node.stored?.[name], sample.edited ?? sample.text) : null,
    act && sample && answer.status !== "writing" && answer.status !== "waiting" ? toolsView(state, node, column, answer, sample, act) : samplePager(answer, act, node, name),
  ].filter(Boolean);
  const body = (sample, tokens) => {
    if (sample.editing) return editView(node, name, sample, act);
    if (sample.trace) return traceView(sample.edited ?? sample.text, sample.trace, column.label);
    return tokens?.box ?? el("div", { class: "said", tabindex: "0", role: "group", "aria-label": `Answer of ${column.label}` }, sample.edited);
  };
  const grow = () => {
    const answer = node.answers[name];
    if (!view || !answer || !root.contains(view.box)) return update();
    view.grow();
    root.querySelector(".facts-line")?.replaceWith(factsView(answer, answer.samples[answer.shown ?? 0]));
  };
  update();
  return { root, update, grow, shade: () => view?.shade() };
}

function statusView(answer) {
  const said = { waiting: answer.queue ? `waits behind ${answer.queue}` : "waits …", writing: "writes …", stopped: "stopped" }[answer.status];
  return said ? el("span", { class: "soft small" }, said) : null;
}

function factsView(answer, sample) {
  if (sample.edited !== undefined) return el("p", { class: "facts-line small soft" }, "edited");
  const mean = surprise(sample);
  const facts = [
    `${sample.tokens.length} token${sample.tokens.length === 1 ? "" : "s"}`,
    answer.seconds && answer.status === "done" ? `${answer.seconds.toFixed(1)} s` : null,
    mean === null ? null : `surprise ${mean.toFixed(2)} nats a token`,
    sample.stop === "length" ? "cut at the limit" : null,
  ].filter(Boolean);
  return el("p", { class: "facts-line small soft" }, facts.join(" · "));
}

function samplePager(answer, act, node, name) {
  if (answer.samples.length < 2) return null;
  const to = (place) => { answer.shown = place; act ? act.refresh(node, name) : answer.redraw?.(); };
  const place = answer.shown ?? 0;
  return el("div", { class: "tools" },
    button("‹", "Sample before", () => to(place - 1), { disabled: place === 0 }),
    el("span", { class: "small soft" }, `sample ${place + 1} of ${answer.samples.length}`),
    button("›", "Next sample", () => to(place + 1), { disabled: place === answer.samples.length - 1 }));
}

function toolsView(state, node, column, answer, sample, act) {
  const others = state.shown.filter((name) => name !== column.name && node.answers[name]?.samples.length);
  const better = el("select", { "aria-label": `${column.label} is better than`, onchange: (event) => { act.better(node, column.name, event.target.value); event.target.value = ""; } },
    el("option", { value: "" }, "Better than …"),
    others.map((name) => el("option", { value: name }, state.columns.find((one) => one.name === name).label)));
  const thumb = (good, sign, text) => button(sign, `${text} answer of ${column.label}`, () => act.mark(node, column.name, good), { "aria-pressed": String(sample.mark === good), class: "thumb" });
  return el("div", { class: "tools" }, samplePager(answer, act, node, column.name),
    state.readOnly ? null : [thumb(true, "Good", "Good"), thumb(false, "Bad", "Bad"), others.length ? better : null,
      button("Edit", `Edit the answer of ${column.label}`, () => { sample.editing = true; act.refresh(node, column.name); })],
    column.trace ? button(sample.trace ? "Tokens" : "Trace", `${sample.trace ? "Tokens" : "Trace"}: where the words of ${column.label} come from`, () => act.trace(node, column.name), { "aria-pressed": String(Boolean(sample.trace)) }) : null);
}

function editView(node, name, sample, act) {
  const field = el("textarea", { rows: "6", "aria-label": "The answer as it should be" });
  field.value = sample.edited ?? sample.text;
  return el("form", { class: "edit", onsubmit: (event) => { event.preventDefault(); act.mend(node, name, field.value); } }, field,
    el("div", { class: "tools" }, el("button", { type: "submit" }, "Keep as SFT row"),
      button("Cancel", null, () => { delete sample.editing; act.refresh(node, name); })));
}
