// What the page knows: the columns, how to ask, and a tree of turns whose chosen path is the conversation.
let number = 0;

export function newState(config) {
  return {
    title: config.title, columns: config.columns.map((column, place) => ({ ...column, place })), most: config.most,
    shown: config.columns.slice(0, config.most).map((column) => column.name), plain: {}, readOnly: config.read_only,
    system: "", settings: { max_tokens: 256, temperature: 0, top_p: 1, top_k: 0, n: 1, seed: 0, stop: [] },
    shade: "none", verifier: "", reference: "", item: null, context: [], prefix: "", raw: false,
    root: { children: [], chosen: 0 },
  };
}

export function pathOf(root) {
  const path = [];
  for (let node = root.children[root.chosen]; node; node = node.children[node.chosen]) path.push(node);
  return path;
}

export const parentOf = (root, path, depth) => (depth ? path[depth - 1] : root);

export function addTurn(parent, user, more = {}) {
  number += 1;
  const node = { id: number, user, answers: {}, children: [], chosen: 0, ...more };
  parent.children.push(node);
  parent.chosen = parent.children.length - 1;
  return node;
}

const said = (answer) => {
  const sample = answer?.samples[answer.shown ?? 0];
  return sample && (sample.edited ?? sample.text);
};

// The prompt of one column at a turn: null where it has not answered an earlier one. Plain text has no template.
export function promptOf(state, path, depth, column) {
  const node = path[depth];
  if (node.raw) return { text: node.user };
  const before = path[0].context ?? [];
  const messages = [...(state.system ? [{ role: "system", content: state.system }] : []), ...before];
  for (const earlier of path.slice(0, depth)) {
    const answer = said(earlier.answers[column.name]);
    if (answer === undefined) return null;
    messages.push({ role: "user", content: earlier.user }, { role: "assistant", content: answer });
  }
  messages.push({ role: "user", content: node.user });
  if (node.prefix) messages.push({ role: "assistant", content: node.prefix });
  if (isPlain(state, column)) return { text: messages.map((one) => one.content).join("\n\n"), messages };
  return { messages };
}

export const isPlain = (state, column) => state.plain[column.name] ?? (!column.server && !column.chat);

// The state in the URL: what was asked and how, not the answers, which the same seed writes again.
export async function packed(state) {
  const path = pathOf(state.root);
  const kept = {
    shown: state.shown, plain: state.plain, system: state.system, settings: state.settings, shade: state.shade,
    verifier: state.verifier, reference: state.reference, turns: path.map((node) => node.user),
    item: state.item && [state.item.task, state.item.item],
  };
  const bytes = new TextEncoder().encode(JSON.stringify(kept));
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const small = new Uint8Array(await new Response(stream).arrayBuffer());
  return btoa(String.fromCharCode(...small)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

// Take over what a link says, as far as this page has it.
export function adopt(state, kept) {
  const known = new Set(state.columns.map((column) => column.name));
  const shown = (kept.shown ?? []).filter((name) => known.has(name)).slice(0, state.most);
  if (shown.length) state.shown = shown;
  for (const name of ["system", "shade", "verifier", "reference"]) if (typeof kept[name] === "string") state[name] = kept[name];
  for (const [name, value] of Object.entries(kept.plain ?? {})) if (known.has(name)) state.plain[name] = Boolean(value);
  for (const name of Object.keys(state.settings)) {
    const value = kept.settings?.[name];
    if (name === "stop" ? Array.isArray(value) && value.every((one) => typeof one === "string") : Number.isFinite(value)) state.settings[name] = value;
  }
  return (kept.turns ?? []).filter((turn) => typeof turn === "string");
}

// What a frozen page needs of it.
export function frozenState(state) {
  const strip = (sample) => ({ text: sample.text, edited: sample.edited, tokens: sample.tokens, stop: sample.stop, others: sample.others, reasons: sample.reasons, verdict: sample.verdict, trace: sample.trace });
  const path = pathOf(state.root).map((node) => ({
    id: node.id, user: node.user, raw: node.raw, stored: node.stored,
    answers: Object.fromEntries(state.shown.filter((name) => node.answers[name]).map((name) => {
      const { status, error, samples, shown, seconds } = node.answers[name];
      return [name, { status, error, samples: samples.map(strip), shown, seconds }];
    })),
  }));
  const columns = state.columns.filter((column) => state.shown.includes(column.name))
    .map(({ name, label, about, place }) => ({ name, label, about, place }));
  const { title, shown, system, settings, shade, verifier, reference } = state;
  return { title, columns, shown, system, settings, shade, verifier, reference, path, date: new Date().toISOString().slice(0, 10) };
}
