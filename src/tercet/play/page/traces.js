import { el } from "./dom.js";

// An answer with the spans underlined that stand word for word in training rows, and those rows below.
export function traceView(text, trace, label) {
  const letters = Array.from(text); // offsets count characters, not halves of them
  const box = el("div", { class: "said traced", tabindex: "0", role: "group", "aria-label": `Answer of ${label} with spans from training rows` });
  const rows = el("div", { class: "rows" });
  let place = 0;
  for (const [start, stop] of trace.covered) {
    const own = trace.spans.filter((span) => span.start < stop && start < span.stop);
    const show = () => rows.replaceChildren(...own.map((span) => spanRows(span)));
    const key = (event) => { if (["Enter", " "].includes(event.key)) { event.preventDefault(); show(); } };
    // no button element: its text would not flow over several lines
    box.append(letters.slice(place, start).join(""),
      el("span", { class: "span", role: "button", tabindex: "0", onclick: show, onkeydown: key }, letters.slice(start, stop).join("")));
    place = stop;
  }
  box.append(letters.slice(place).join(""));
  if (trace.spans.length) rows.append(spanRows(trace.spans[0]));
  const said = trace.spans.length
    ? `${Math.round(100 * trace.share)} % of the words stand in spans of eight or more words that training rows hold. Choose an underlined span for its rows.`
    : "No span of eight or more words stands in a training row.";
  return el("div", { class: "trace" }, box, el("p", { class: "small soft" }, said), rows);
}

function spanRows(span) {
  return el("section", { class: "spanrows", "aria-label": "Training rows" },
    el("h3", {}, `“${span.text.length > 90 ? `${span.text.slice(0, 90)}…` : span.text}”`),
    el("p", { class: "small soft" }, `${span.words} words, ${span.count} place${span.count === 1 ? "" : "s"} in the rows`),
    span.rows.map((row) => {
      const letters = Array.from(row.text);
      return el("div", { class: "trainrow" },
        el("p", { class: "small" }, el("b", {}, row.stage), ` row ${row.number} · ${row.source || "own rows"} · ${row.role} · licence: ${row.licence}`),
        el("p", { class: "small excerpt" }, row.cut?.[0] ? "…" : "", letters.slice(0, row.start).join(""),
          el("mark", {}, letters.slice(row.start, row.stop).join("")), letters.slice(row.stop).join(""), row.cut?.[1] ? "…" : ""));
    }));
}
