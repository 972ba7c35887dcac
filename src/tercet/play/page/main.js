import { call, Refusal, setKey } from "./api.js";
import { app, columnOf, pathNow, refresh, shownOf, words } from "./app.js";
import { askAll, scoreSample, shadeChanges, stop } from "./asking.js";
import { button, el, themeButton } from "./dom.js";
import { gradeLast, namedItem, nextItem } from "./grading.js";
import { better, mark, mend } from "./keeping.js";
import { columnsView, gradingView, itemsView, itemText, settingsView } from "./panels.js";
import { freeze, link } from "./sharing.js";
import { addTurn, adopt, newState, parentOf, unpacked } from "./state.js";
import { conversationView } from "./turns.js";

const page = document.getElementById("page");
const status = el("p", { class: "status small soft", role: "status" });
const composer = el("textarea", { id: "prompt", rows: "2", "aria-label": "Your prompt", placeholder: "Ask all columns …" });
const sender = el("button", { type: "submit", class: "send" }, "Send");
const stopper = button("Stop", "Stop writing (Escape)", stop, { hidden: true });
const top = { columns: el("div"), settings: el("div"), grading: el("div"), items: el("div"), turns: el("div", { id: "conversation" }) };
app.say = (message) => { status.textContent = message; };
app.draw = draw;
app.changed = () => {
  stopper.hidden = !app.running;
  sender.disabled = Boolean(app.running);
};

// What can be done with the turns and answers.
const act = {
  better, mark, mend, refresh,
  siblings: (path, depth) => parentOf(app.state.root, path, depth).children,
  scores: (node, column) => (sample) => scoreSample(node, column, sample),
  branch(path, depth, place) {
    parentOf(app.state.root, path, depth).chosen = place;
    draw();
  },
  edit(path, depth, text) {
    const { context, prefix, raw, item, stored } = path[depth];
    const same = text === path[depth].user; // another question is no longer the evaluation's
    addTurn(parentOf(app.state.root, path, depth), text, { context, prefix, raw, ...(same ? { item, stored } : {}) });
    draw();
    askAll(pathNow(), depth, app.state.shown);
  },
  ask(node, name) {
    const path = pathNow();
    const depth = path.indexOf(node);
    if (path.slice(0, depth).some((one) => !one.answers[name])) return app.say(`Ask ${columnOf(name).label} the turn before first.`);
    askAll(path, depth, [name]);
  },
  async trace(node, name) {
    const sample = shownOf(node, name);
    if (sample.trace) delete sample.trace;
    else {
      app.say("Looking through the training rows …");
      try {
        sample.trace = await call("/play/trace", { column: name, text: words(sample), prompt: node.user });
        const found = sample.trace.spans.length;
        app.say(found ? `${found} span${found === 1 ? "" : "s"} found.` : "No span found.");
      } catch (error) {
        app.say(error.message);
      }
    }
    refresh(node, name);
  },
};

function draw() {
  const path = pathNow();
  const drawn = conversationView(app.state, path, act);
  app.cells = drawn.cells;
  top.turns.replaceChildren(path.length ? drawn.list : welcome());
  panels();
}

function panels() {
  const { state, config } = app;
  top.columns.replaceChildren(columnsView(state, {
    toggle(name) {
      state.shown = state.columns.map((one) => one.name).filter((one) => (one === name ? !state.shown.includes(name) : state.shown.includes(one)));
      draw();
    },
  }));
  top.settings.replaceChildren(settingsView(state, {
    set: (name, value) => { state.settings[name] = value; },
    system: (text) => { state.system = text; },
    plain: (name, on) => { state.plain[name] = on; },
  }));
  top.grading.replaceChildren(gradingView(state, config, {
    verifier: (name) => { state.verifier = name; }, reference: (text) => { state.reference = text; }, grade: gradeLast,
  }));
  top.items.replaceChildren(...[itemsView(state, config, { next: askNext })].filter(Boolean));
  const where = top.items.querySelector(".where");
  if (where && state.item) where.textContent = itemText(state.item);
}

async function askNext(task, change) {
  stop();
  try {
    composer.value = await nextItem(task, change);
    top.items.querySelector("[name=task]").value = task;
    top.items.querySelector("[name=change]").value = change;
    send();
  } catch (error) {
    app.say(error.message);
  }
}

function welcome() {
  return el("div", { class: "welcome" }, el("h2", {}, "The same prompt, through every stage"),
    el("p", { class: "soft" }, "Type a prompt below. All columns answer with the same seed. Point at a token, or walk to it with the arrow keys, for its probability in every stage."));
}

function send() {
  const text = composer.value;
  if (!text.trim() || app.running) return;
  const path = pathNow();
  const { context = [], prefix = "", raw = false, item, stored } = app.state.next ?? {};
  addTurn(path.at(-1) ?? app.state.root, text, path.length ? {} : { context, prefix, raw, item, stored });
  app.state.next = null;
  composer.value = "";
  draw();
  askAll(pathNow(), path.length, app.state.shown);
  top.turns.querySelector(".exchange:last-child")?.scrollIntoView({ block: path.length ? "start" : "nearest" });
}

function restart() {
  stop();
  Object.assign(app.state, { root: { children: [], chosen: 0 }, item: null, next: null, verifier: "", reference: "", system: "" });
  draw();
  composer.focus();
}

function layout() {
  const { state } = app;
  const shade = el("select", { name: "shade", onchange: (event) => reshade(event.target.value) },
    [["none", "no shading"], ["change", "what changed since the stage before"], ["surprise", "surprise"]].map(([value, text]) => el("option", { value, selected: state.shade === value }, text)));
  const bar = el("header", { class: "topbar" }, el("h1", {}, state.title),
    el("div", { class: "tools" }, button("New", "Begin a new conversation", restart), button("Link", "Copy a link to this page's state", link),
      button("Save", "Save as one file that opens offline", freeze), themeButton()));
  const form = el("form", { class: "composer", "aria-label": "Prompt", onsubmit: (event) => { event.preventDefault(); send(); } }, composer, el("div", { class: "tools" }, sender, stopper), status);
  page.replaceChildren(bar,
    el("main", {},
      el("div", { class: "how" }, top.columns, el("label", { class: "field shade" }, el("span", { class: "small soft" }, "Shade tokens by"), shade)),
      el("div", { class: "panels-row" }, el("details", { class: "panelbox" }, el("summary", {}, "Settings"), el("div", { class: "inside" }, top.settings)),
        el("details", { class: "panelbox" }, el("summary", {}, "Right or wrong ", el("span", { class: "soft" }, "evaluation items and verifiers")),
          el("div", { class: "inside" }, top.items, top.grading))),
      top.turns),
    form);
  draw();
  app.changed();
}

function reshade(shade) {
  app.state.shade = shade;
  for (const cell of app.cells.values()) cell.shade();
  if (shade === "change") shadeChanges();
}

composer.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });

async function start() {
  try {
    app.config = await call("/play/config");
  } catch (error) {
    return error instanceof Refusal && error.status === 401 ? askKey() : page.replaceChildren(el("main", {}, el("p", { class: "note bad" }, error.message)));
  }
  app.state = newState(app.config);
  document.title = `${app.config.title} · play`;
  const kept = location.hash.startsWith("#s=") ? await unpacked(location.hash.slice(3)).catch(() => null) : null;
  const turns = kept ? adopt(app.state, kept) : [];
  layout();
  if (kept?.item) await namedItem(...kept.item).catch((error) => app.say(error.message));
  if (turns.length) offer(turns);
  composer.focus();
}

// A link is not obeyed at once: whoever opens it decides whether its questions are asked.
function offer(turns) {
  composer.value = turns[0];
  const run = async () => {
    for (const text of turns) {
      composer.value = text;
      send();
      while (app.running) await new Promise((done) => setTimeout(done, 50));
    }
  };
  if (turns.length > 1) top.turns.append(el("p", { class: "note" }, `The link holds ${turns.length} turns. `, button("Ask them all", null, run)));
}

function askKey() {
  const field = el("input", { type: "password", autocomplete: "off", "aria-label": "Key" });
  page.replaceChildren(el("main", {}, el("h1", {}, "A key is needed"), el("p", {}, "This server answers only who has its key."),
    el("form", { class: "tools", onsubmit: (event) => { event.preventDefault(); setKey(field.value.trim()); start(); } }, field, el("button", { type: "submit" }, "Enter"))));
  field.focus();
}

start();
