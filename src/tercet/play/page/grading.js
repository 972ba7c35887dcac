import { call } from "./api.js";
import { app, pathNow, refresh, words } from "./app.js";

// Right or wrong: verdicts on answers, and the items of the run's evaluations.
let picked = { key: "", number: -1 };

export async function grade(node, name) {
  const answer = node.answers[name];
  if (!answer?.samples.length || answer.status === "failed") return;
  const body = {
    verifier: app.state.verifier, reference: app.state.reference,
    prompt: answer.prompt?.messages ?? [{ role: "user", content: node.user }],
    answers: answer.samples.map((one) => ({ text: words(one), stop: one.stop || "eos", tokens: one.tokens.length })),
    ...(node.item ? { task: node.item[0], item: node.item[1] } : {}),
  };
  try {
    const { grades } = await call("/play/grade", body);
    answer.samples.forEach((sample, i) => { sample.verdict = grades[i]; });
  } catch (error) {
    app.say(error.message);
  }
}

export async function gradeLast() {
  const node = pathNow().at(-1);
  if (!node || !app.state.verifier) return app.say("Choose a verifier, and ask something first.");
  await Promise.all(app.state.shown.map((name) => grade(node, name)));
  for (const name of app.state.shown) refresh(node, name);
}

export async function nextItem(task, change) {
  const key = JSON.stringify([task, change, app.state.shown]);
  const number = picked.key === key ? picked.number + 1 : 0;
  const query = new URLSearchParams({ task, change, number, columns: app.state.shown.join(",") });
  const found = await call(`/play/items?${query}`);
  picked = { key, number };
  return loadItem(found);
}

export async function namedItem(task, item) {
  return loadItem(await call(`/play/items?${new URLSearchParams({ task, item })}`));
}

// A new conversation that begins with the item; gives its question.
function loadItem(found) {
  const turns = [...found.messages];
  const system = turns[0]?.role === "system" ? turns.shift().content : "";
  const prefix = turns.at(-1)?.role === "assistant" ? turns.pop().content : "";
  const last = turns.pop();
  const { max_tokens, temperature, top_p, top_k, stop } = found.settings;
  Object.assign(app.state, {
    system, verifier: found.judge || found.verifier, reference: found.reference, root: { children: [], chosen: 0 },
    item: { task: found.task, item: found.item, number: found.number, of: found.of, shots: turns.length },
    next: { context: turns, prefix, raw: last.role === "text", item: [found.task, found.item], stored: found.stored },
  });
  Object.assign(app.state.settings, { max_tokens, temperature, top_p, top_k, stop });
  app.draw();
  return last.content;
}
