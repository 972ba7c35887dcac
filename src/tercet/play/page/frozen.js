import { el, themeButton } from "./dom.js";
import { conversationView } from "./turns.js";

// The page of one file: the answers, verdicts and traces as they were, with nobody to ask.
const kept = JSON.parse(document.getElementById("state").textContent);
const drawn = conversationView(kept, kept.path);
for (const [key, cell] of drawn.cells) {
  const [id, name] = [key.slice(0, key.indexOf("/")), key.slice(key.indexOf("/") + 1)];
  const answer = kept.path.find((node) => String(node.id) === id).answers[name];
  if (answer) answer.redraw = () => cell.update();
}
const settings = Object.entries(kept.settings).filter(([, value]) => value !== "" && !(Array.isArray(value) && !value.length));
document.getElementById("page").append(
  el("header", { class: "topbar" }, el("div", {}, el("h1", {}, kept.title), el("p", { class: "small soft" }, `kept on ${kept.date}`)), themeButton()),
  el("main", {},
    kept.system ? el("details", {}, el("summary", {}, "System prompt"), el("p", { class: "inside words" }, kept.system)) : null,
    kept.reference ? el("p", { class: "small" }, `${kept.verifier}, reference answer `, el("code", {}, kept.reference.slice(0, 400))) : null,
    el("p", { class: "small soft" }, settings.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(" · ")),
    drawn.list));
