import { el, percent, series, signed, visible } from "./dom.js";

// An answer token by token. Shading says how likely a token was, or how much more or less likely than for the stage
// before; whoever points at a token, or walks to it with the arrow keys, sees its probability in every stage.
const SURPRISE = [0.7, 1.6, 3, 5]; // nats: probabilities of 0.5, 0.2, 0.05, 0.007
const CHANGE = [0.4, 1, 2, 4]; // nats: the ratios 1.5, 2.7, 7.4, 55

export function surprise(sample) {
  const known = sample.tokens.filter((token) => typeof token.logp === "number");
  return known.length ? -known.reduce((sum, token) => sum + token.logp, 0) / known.length : null;
}

export function shadeOf(sample, place, shade, before) {
  const own = sample.tokens[place].logp;
  if (typeof own !== "number") return "";
  if (shade === "surprise") return `u${SURPRISE.filter((bound) => -own > bound).length}`;
  const other = sample.others?.[before]?.[place]?.logp;
  if (shade !== "change" || typeof other !== "number") return "";
  const level = CHANGE.filter((bound) => Math.abs(own - other) > bound).length;
  return level ? `${own > other ? "more" : "less"}${level}` : "";
}

// `how`: shade, before (the stage before, if any), label, and `scores`, which asks for the other stages' probabilities.
export function tokenView(sample, how) {
  const box = el("div", {
    class: "said tokens", tabindex: "0", role: "group",
    "aria-label": `Answer of ${how.label}. Arrow keys move from token to token.`,
  });
  let shown = 0;
  let active = -1;
  const grow = () => {
    for (; shown < sample.tokens.length; shown += 1) box.append(tokenSpan(sample, shown, how));
  };
  const pick = (place) => {
    box.children[active]?.classList.remove("active");
    active = place;
    const span = box.children[place];
    if (!span) return hidePanel();
    span.classList.add("active");
    showPanel(sample, place, how, span);
    how.scores?.(sample).then((changed) => {
      if (!changed) return;
      shadeAll();
      if (box.isConnected && box.children[active]) showPanel(sample, active, how, box.children[active]);
    });
  };
  const shadeAll = () => [...box.children].forEach((span, place) => {
    span.className = tokenClass(sample, place, how) + (place === active ? " active" : "");
  });
  let waiting = 0;
  const at = (event) => [...box.children].indexOf(event.target.closest(".tok"));
  box.addEventListener("pointerover", (event) => {
    clearTimeout(waiting);
    if (event.pointerType === "mouse" && at(event) >= 0) waiting = setTimeout(pick, 90, at(event));
  });
  box.addEventListener("pointerleave", () => { clearTimeout(waiting); if (document.activeElement !== box) pick(-1); });
  box.addEventListener("click", (event) => { if (at(event) >= 0) pick(at(event)); });
  box.addEventListener("blur", () => pick(-1));
  box.addEventListener("keydown", (event) => {
    const last = box.children.length - 1;
    const to = { ArrowRight: Math.min(active + 1, last), ArrowLeft: Math.max(active - 1, 0), Home: 0, End: last }[event.key];
    if (event.key === "Escape" && active >= 0) { event.stopPropagation(); pick(-1); }
    if (to === undefined) return;
    event.preventDefault();
    pick(to);
    box.children[to]?.scrollIntoView({ block: "nearest" });
  });
  grow();
  return { box, grow, shade: shadeAll };
}

function tokenClass(sample, place, how) {
  const shade = shadeOf(sample, place, how.shade(), how.before);
  return ["tok", shade, isEnd(sample, place) ? "ending" : ""].filter(Boolean).join(" ");
}

function isEnd(sample, place) {
  return sample.tokens[place].text === "" && place === sample.tokens.length - 1 && sample.stop === "eos";
}

function tokenSpan(sample, place, how) {
  return el("span", { class: tokenClass(sample, place, how) }, isEnd(sample, place) ? "◂" : sample.tokens[place].text);
}

function tokenPanel() {
  return document.getElementById("token-panel")
    ?? document.body.appendChild(el("aside", { id: "token-panel", class: "panel", "aria-live": "polite", "aria-label": "Token", hidden: true }));
}

function hidePanel() {
  tokenPanel().hidden = true;
}

function showPanel(sample, place, how, span) {
  const panel = tokenPanel();
  const token = sample.tokens[place];
  const rows = how.columns().map((column, index) => {
    const seen = column.name === how.name ? token : sample.others?.[column.name]?.[place];
    return { column, index, logp: seen?.logp, reason: sample.reasons?.[column.name] };
  });
  const measured = rows.filter((row) => typeof row.logp === "number");
  panel.replaceChildren(...[
    el("p", { class: "head" }, el("code", {}, visible(token.text || token.name || "")), el("span", { class: "soft" }, ` token ${place + 1} of ${how.label}`)),
    typeof token.logp === "number"
      ? el("ul", { class: "chances" }, rows.map((row) => chance(row, row.column.name === how.name, since(rows, how))))
      : el("p", { class: "soft small" }, "This server gives no probabilities."),
    token.top?.length ? el("p", { class: "soft small" }, `${how.label} could have written`) : null,
    token.top?.length
      ? el("ol", { class: "likely" }, token.top.slice(0, 5).map(([text, logp]) =>
        el("li", {}, el("code", {}, visible(text)), " ", el("span", { class: "soft" }, percent(Math.exp(logp))))))
      : null,
    measured.length < rows.length && sample.scoring ? el("p", { class: "soft small" }, "asking the other stages …") : null,
  ].filter(Boolean));
  panel.hidden = false;
  const box = span.getBoundingClientRect();
  if (innerWidth > 640) {
    const left = Math.min(Math.max(8, box.left - 20), innerWidth - panel.offsetWidth - 8);
    const below = box.bottom + 8 + panel.offsetHeight < innerHeight;
    panel.style.left = `${left}px`;
    panel.style.top = `${Math.max(8, below ? box.bottom + 8 : box.top - panel.offsetHeight - 8)}px`;
  } else {
    panel.style.left = panel.style.top = "";
  }
}

// How much more likely a token has become since the stage before: "+4.29 nats since Base".
function since(rows, how) {
  const [before, own] = [how.before, how.name].map((name) => rows.find((row) => row.column.name === name));
  const known = typeof before?.logp === "number" && typeof own?.logp === "number";
  return known ? ` ${signed(own.logp - before.logp)} nats since ${before.column.label}` : "";
}

function chance({ column, index, logp, reason }, mine, change) {
  const bar = el("span", { class: "fill" });
  if (typeof logp === "number") bar.style.width = `${Math.max(1, 100 * Math.exp(logp))}%`;
  return el("li", { class: `${series(column.place ?? index)}${mine ? " mine" : ""}` },
    el("span", { class: "who" }, column.label),
    el("span", { class: "track", "aria-hidden": "true" }, bar),
    el("span", { class: "much" }, typeof logp === "number" ? percent(Math.exp(logp)) : (reason ?? "–"), mine ? el("span", { class: "soft" }, change) : null));
}
