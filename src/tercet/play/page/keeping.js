import { call } from "./api.js";
import { app, pathNow, refresh, shownOf, words } from "./app.js";
import { grade } from "./grading.js";

// What somebody decides is kept: pairs, marks and mended answers.
export async function better(node, good, bad) {
  if (bad) await keepPair(node, good, bad, "better");
}

export async function mark(node, name, good) {
  const sample = shownOf(node, name);
  sample.mark = good;
  refresh(node, name);
  const kept = await keep({ kind: "mark", ...asked(node, name), answer: words(sample), model: name, good });
  for (const other of kept ? app.state.shown : []) {
    if (other === name || shownOf(node, other)?.mark !== !good) continue;
    await keepPair(node, ...(good ? [name, other] : [other, name]), "thumbs");
  }
}

export async function mend(node, name, text) {
  const sample = shownOf(node, name);
  if (!(await keep({ kind: "row", ...asked(node, name), answer: text, model: name, before: words(sample) }))) return;
  delete sample.editing;
  delete sample.verdict;
  delete sample.trace;
  sample.edited = text;
  if (app.state.verifier && node === pathNow().at(-1)) await grade(node, name);
  refresh(node, name);
}

function asked(node, name) {
  const answer = node.answers[name];
  const messages = answer.prompt?.messages ?? [{ role: "user", content: node.user }];
  return { prompt: messages, settings: { ...answer.settings, sample: answer.shown ?? 0, plain: answer.prompt?.text !== undefined } };
}

async function keepPair(node, good, bad, how) {
  const [chosen, rejected] = [good, bad].map((name) => words(shownOf(node, name)));
  await keep({ kind: "pair", ...asked(node, good), chosen, rejected, chosen_model: good, rejected_model: bad, how });
}

async function keep(record) {
  try {
    const kept = await call("/play/keep", record);
    app.say(`Kept (${kept.kept} so far). A stage reads them with: ${kept.source}`);
    return kept;
  } catch (error) {
    app.say(error.message);
    return null;
  }
}
