// Elements without markup: texts are only ever set as text.
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function button(text, label, onclick, props = {}) {
  return el("button", { type: "button", onclick, "aria-label": label, title: label, ...props }, text);
}

// A stage's colour is its place among the columns, as on the report's page.
export const series = (place) => `s${Math.max(0, place) % 6}`;

export const percent = (share) =>
  share >= 0.9995 ? "100 %" : share >= 0.1 ? `${(100 * share).toFixed(1)} %` : share >= 0.0001 ? `${(100 * share).toFixed(2)} %` : "< 0.01 %";

export const signed = (number, digits = 2) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(digits)}`;

// Blanks are shown where a token is named, so that " a" and "a" differ.
export const visible = (text) =>
  text === "" ? "(nothing)" : text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");

export function themeButton() {
  const root = document.documentElement;
  return button("◐", "Switch between light and dark", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }, { id: "theme" });
}
