import { el } from "./dom.js";

// The verdict under an answer, as the report writes it, with every constraint ticked.
export function verdictView(grade, stored, text) {
  const mark = grade.right === null ? "–" : grade.right ? "✓" : "✗";
  const kind = grade.right === null ? "" : grade.right ? " right" : " wrong";
  const name = grade.right === null ? "not graded" : grade.right ? "right" : "wrong";
  const facts = [
    grade.answer ? ["read as ", el("code", {}, grade.answer)] : null,
    `score ${Number(grade.score.toFixed(3))}`,
    grade.outcome === "graded" ? null : grade.outcome,
    grade.parts?.length ? null : grade.detail || null,
  ].filter(Boolean);
  return el("div", { class: "verdict" },
    el("p", { class: "small" }, el("span", { class: `pill${kind}` }, `${mark} ${name}`), " ",
      el("span", { class: "soft" }, facts.map((fact, i) => [i ? " · " : "", fact]))),
    grade.parts?.length
      ? el("ul", { class: "parts" }, grade.parts.map((part) => el("li", { class: part.right ? "right" : "wrong" },
        el("span", { class: "tick", role: "img", "aria-label": part.right ? "followed" : part.right === null ? "not graded" : "not followed" }, part.right ? "✓" : part.right === null ? "–" : "✗"),
        part.label)))
      : null,
    stored ? el("p", { class: "small soft" }, storedText(stored, text)) : null);
}

// Arithmetic that rounds otherwise can change a token, and with it the rest of an answer.
function storedText(stored, text) {
  const was = stored.right === null ? "not graded" : stored.right ? "right" : "wrong";
  return stored.output === text ? `The evaluation has the same answer: ${was}.` : `The evaluation has another answer, which was ${was}.`;
}

// With several samples: the share that passed, and a mark for each.
export function shareView(verdicts) {
  const graded = verdicts.filter((one) => one && one.right !== null);
  if (verdicts.length < 2 || !graded.length) return null;
  const right = graded.filter((one) => one.right).length;
  const marks = verdicts.map((one) => (!one || one.right === null ? "–" : one.right ? "✓" : "✗")).join("");
  return el("p", { class: "small share" }, el("b", {}, `${right} of ${graded.length} right`), " ", el("span", { class: "soft mono" }, marks));
}
