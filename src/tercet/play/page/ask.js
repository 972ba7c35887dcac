import { call, events, Refusal } from "./api.js";

// One column's answer to one turn, token by token, and the probability of another column's tokens under it.
const LIKELY = 5;
const ENDS = { stop: "eos", length: "length" };

export async function ask(column, prompt, settings, answer, changed, signal) {
  const began = performance.now();
  Object.assign(answer, { status: "waiting", samples: [], shown: 0, error: "", settings });
  try {
    for await (const chunk of replies(column, prompt, settings, signal)) {
      if (chunk.queue !== undefined) answer.queue = chunk.queue;
      for (const choice of chunk.choices ?? []) {
        take(answer, choice);
        answer.first ??= performance.now() - began;
        answer.status = "writing";
      }
      changed();
    }
    answer.status = "done";
  } catch (error) {
    answer.status = error.name === "AbortError" ? "stopped" : "failed";
    if (error.name !== "AbortError") answer.error = error.message;
  }
  answer.seconds = (performance.now() - began) / 1000;
  for (const sample of answer.samples) sample.stop ||= answer.status === "done" ? "eos" : "length";
  changed(true);
}

async function* replies(column, prompt, settings, signal) {
  const { path, body } = request(column, prompt, settings);
  try {
    yield* events(`${column.url}${path}`, { ...body, ...extras(column, prompt, settings) }, signal);
  } catch (error) {
    if (!column.server || !(error instanceof Refusal) || ![400, 422].includes(error.status)) throw error;
    yield* events(`${column.url}${path}`, body, signal); // a server that knows only the least of the protocol
  }
}

function request(column, prompt, { max_tokens, temperature, top_p, n, seed, stop }) {
  const how = { model: column.model, stream: true, max_tokens, temperature, top_p, n, seed };
  if (stop?.length) how.stop = stop;
  return prompt.text === undefined
    ? { path: "/chat/completions", body: { ...how, messages: prompt.messages } }
    : { path: "/completions", body: { ...how, prompt: prompt.text } };
}

function extras(column, prompt, { top_k }) {
  const chat = prompt.text === undefined;
  const open = chat && prompt.messages.at(-1).role === "assistant";
  return {
    ...(chat ? { logprobs: true, top_logprobs: LIKELY } : { logprobs: LIKELY }),
    ...(open ? { continue_final_message: true, add_generation_prompt: false } : {}),
    ...(column.server ? {} : { return_token_ids: true, ...(top_k ? { top_k } : {}) }),
  };
}

function take(answer, choice) {
  while (answer.samples.length <= choice.index) answer.samples.push({ text: "", tokens: [], ids: [], stop: "" });
  const sample = answer.samples[choice.index];
  if (choice.prompt_token_ids) answer.ids = choice.prompt_token_ids;
  if (choice.token_ids) sample.ids.push(...choice.token_ids);
  const said = choice.delta?.content ?? choice.text ?? "";
  sample.text += said;
  sample.tokens.push(...tokens(choice.logprobs, said));
  if (choice.finish_reason) sample.stop = choice.stop_reason ? "stop" : ENDS[choice.finish_reason] ?? choice.finish_reason;
}

// Tokens that share a character, or that were held back, stand with the last of their chunk.
function tokens(logprobs, said) {
  const table = logprobs?.content
    ? logprobs.content.map((one) => ({ name: one.token, logp: one.logprob, top: one.top_logprobs.map((other) => [other.token, other.logprob]) }))
    : textTable(logprobs);
  if (!table.length) return said ? [{ text: said, logp: null, top: [] }] : [];
  const apart = table.map((one) => one.name).join("") === said;
  return table.map((one, i) => ({ text: apart ? one.name : i === table.length - 1 ? said : "", ...one }));
}

function textTable(logprobs) {
  return (logprobs?.tokens ?? []).map((name, i) => ({
    name, logp: logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}

// The log-probabilities that `column` gives to another column's tokens, after its own reading of the prompt.
export async function score(column, promptIds, ids) {
  const body = { model: column.model, prompt: [...promptIds, ...ids], max_tokens: 0, echo: true, logprobs: LIKELY };
  const { choices: [choice] } = await call(`${column.url}/completions`, body);
  return textTable(choice.logprobs).slice(promptIds.length);
}
