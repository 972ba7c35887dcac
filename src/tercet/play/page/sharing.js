import { text } from "./api.js";
import { app, columnOf, pathNow, shownOf } from "./app.js";
import { scoreSample } from "./asking.js";
import { el } from "./dom.js";
import { frozenState, packed } from "./state.js";

export async function link() {
  const url = new URL(location.href);
  url.hash = `s=${await packed(app.state)}`;
  history.replaceState(null, "", url);
  const what = "It holds the questions and settings; the same seed writes the same answers.";
  try {
    await navigator.clipboard.writeText(url.href);
    app.say(`The link is copied. ${what}`);
  } catch {
    app.say(`The link is in the address bar. ${what}`);
  }
}

export async function freeze() {
  app.say("Asking what is missing, so that the file needs nobody …");
  const shown = pathNow().flatMap((node) => app.state.shown.map((name) => [node, name]));
  for (const [node, name] of shown) await scoreSample(node, columnOf(name), shownOf(node, name));
  try {
    const html = await text("/play/frozen", frozenState(app.state));
    const file = URL.createObjectURL(new Blob([html], { type: "text/html" }));
    el("a", { href: file, download: `${app.state.title.replace(/\W+/g, "-")}.html` }).click();
    setTimeout(() => URL.revokeObjectURL(file), 60_000);
    app.say("Saved as one file, which opens offline.");
  } catch (error) {
    app.say(error.message);
  }
}
