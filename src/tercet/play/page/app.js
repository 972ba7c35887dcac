import { pathOf } from "./state.js";

// What the parts of the page share: its state, what is being asked, and how a cell is drawn anew.
export const app = {
  config: null, state: null,
  running: null, // the AbortController of what is being asked
  cells: new Map(), // drawn answers, by turn and column
  say: () => {}, // shows a sentence below the prompt
  changed: () => {}, // something begins or ends being asked
  draw: () => {}, // draws everything anew
};

export const columnOf = (name) => app.state.columns.find((one) => one.name === name);
export const pathNow = () => pathOf(app.state.root);
export const cellOf = (node, name) => app.cells.get(`${node.id}/${name}`);
export const refresh = (node, name) => cellOf(node, name)?.update();
export const shownOf = (node, name) => node.answers[name]?.samples[node.answers[name].shown ?? 0];
export const words = (sample) => sample.edited ?? sample.text;
