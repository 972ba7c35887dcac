import { app, cellOf, columnOf, pathNow, refresh, shownOf } from "./app.js";
import { ask, score } from "./ask.js";
import { grade } from "./grading.js";
import { promptOf } from "./state.js";

// Asking all columns at once, stopping them, and the probability of an answer's tokens in the other stages.
export async function askAll(path, depth, names) {
  stop();
  const own = new AbortController();
  app.running = own;
  app.changed();
  await Promise.all(names.map((name) => askOne(path, depth, name, own.signal)));
  if (app.running === own) app.running = null;
  app.changed();
  app.say(`${names.length === 1 ? "The answer is" : "All answers are"} there.`);
  if (app.state.shade === "change") await shadeChanges();
}

async function askOne(path, depth, name, signal) {
  const node = path[depth];
  const column = columnOf(name);
  const prompt = promptOf(app.state, path, depth, column);
  if (!prompt) return;
  const answer = (node.answers[name] = { samples: [], shown: 0 });
  let painting = false;
  refresh(node, name);
  await ask(column, prompt, { ...app.state.settings }, answer, (ended) => {
    if (ended || painting) return;
    painting = true;
    requestAnimationFrame(() => { painting = false; cellOf(node, name)?.grow(); });
  }, signal);
  answer.prompt = prompt;
  if (app.state.verifier && depth === path.length - 1) await grade(node, name);
  refresh(node, name);
}

export function stop() {
  app.running?.abort();
  app.running = null;
}

// Once per sample; the columns must read the same token ids, each behind its own reading of the prompt.
export async function scoreSample(node, column, sample) {
  if (!sample || sample.others || !sample.ids?.length || app.running) return false;
  Object.assign(sample, { others: {}, reasons: {}, scoring: true });
  const others = app.state.shown.filter((name) => name !== column.name).map(columnOf);
  await Promise.all(others.map(async (other) => {
    const answer = node.answers[other.name];
    if (other.server || other.tokenizer !== column.tokenizer || !column.tokenizer) sample.reasons[other.name] = "other tokens";
    else if (!answer?.ids) sample.reasons[other.name] = "not asked";
    else {
      try {
        sample.others[other.name] = await score(other, answer.ids, sample.ids);
      } catch (error) {
        sample.reasons[other.name] = error.message;
      }
    }
  }));
  sample.scoring = false;
  return true;
}

export async function shadeChanges() {
  for (const node of pathNow()) {
    await Promise.all(app.state.shown.map(async (name) => {
      if (await scoreSample(node, columnOf(name), shownOf(node, name))) cellOf(node, name)?.shade();
    }));
  }
}
