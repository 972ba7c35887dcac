// What a browser finds wrong with pages: `node look.mjs MODULES CHROMIUM SHOTS PAGE…` prints a JSON list of findings.
// MODULES is a folder of node_modules with playwright-core and axe-core; SHOTS a folder for pictures, or "".
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";

const [modules, chromium, shots, ...pages] = process.argv.slice(2);
const load = createRequire(join(modules, "x"));
const axe = readFileSync(load.resolve("axe-core/axe.min.js"), "utf8");
const browser = await load("playwright-core").chromium.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const findings = [];
// Runs in the page: what a hostile text would leave.
const ran = () => document.documentElement.hasAttribute("data-pwned") ? ["a text of others has run"] : [];

// Runs in the page: texts and boxes that are cut, lie outside their frame or on each other, and ticks that repeat.
const inspect = () => {
  const found = [];
  const wide = document.documentElement.clientWidth;
  const clips = (element) => {
    for (let at = element.parentElement; at; at = at.parentElement) {
      if (at instanceof SVGElement) continue;
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(at).overflowX)) return true;
    }
    return false;
  };
  const name = (element) => `<${element.tagName.toLowerCase()} class="${element.getAttribute("class") ?? ""}"> ${element.textContent.trim().slice(0, 60)}`;
  const seen = (element) => element.getClientRects().length > 0 && getComputedStyle(element).visibility !== "hidden";
  if (document.documentElement.scrollWidth > wide) found.push(`the page is ${document.documentElement.scrollWidth} wide, the window ${wide}`);
  for (const element of document.querySelectorAll("body *")) {
    if (!seen(element) || element.ownerSVGElement) continue;
    const box = element.getBoundingClientRect();
    if ((box.right > wide + 1 || box.left < -1) && !clips(element)) found.push(`beyond the page: ${name(element)}`);
    const style = getComputedStyle(element);
    const slides = wide > 1000 && element.matches(".scroll") && element.scrollWidth > element.clientWidth + 1;
    if (slides) found.push(`wider than a page of ${wide}: ${element.scrollWidth} > ${element.clientWidth}: ${name(element)}`);
    const hides = ["hidden", "clip"].includes(style.overflowX) && element.scrollWidth > element.clientWidth + 1;
    if (hides && element.textContent.trim() && !element.matches(".unseen")) found.push(`cut: ${name(element)}`);
  }
  const meet = (a, b, slack = 1) => a.left < b.right - slack && b.left < a.right - slack && a.top < b.bottom - slack && b.top < a.bottom - slack;
  for (const svg of document.querySelectorAll("svg")) {
    if (!seen(svg)) continue;
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map((text) => text.getBoundingClientRect());
    const label = svg.getAttribute("aria-label") ?? "";
    texts.forEach((text, i) => {
      const box = boxes[i];
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        found.push(`outside the drawing "${label}": ${name(text)}`);
      const rect = text.parentElement.matches("g.box") && text.parentElement.querySelector("rect").getBoundingClientRect();
      if (rect && (box.right > rect.right - 3 || box.left < rect.left)) found.push(`outside its box: ${name(text)}`);
      for (let j = 0; j < i; j++) if (meet(box, boxes[j])) found.push(`texts lie on each other in "${label}": ${name(text)}, ${name(texts[j])}`);
      if (!text.matches(".bound")) return;
      for (const line of svg.querySelectorAll("polyline.line")) {
        const matrix = line.getScreenCTM();
        for (let at = 0; at <= 300; at++) {
          const point = line.getPointAtLength(line.getTotalLength() * at / 300).matrixTransform(matrix);
          if (point.x > box.left && point.x < box.right && point.y > box.top + 2 && point.y < box.bottom - 2) {
            found.push(`a label lies on the curve of "${label}": ${name(text)}`);
            return;
          }
        }
      }
    });
    for (const axis of [".tick:not(.mid):not(.bound)", ".tick.mid"]) {
      const said = [...svg.querySelectorAll(axis)].map((text) => text.textContent);
      if (new Set(said).size < said.length) found.push(`ticks repeat in "${label}": ${said.join(" ")}`);
    }
  }
  return found;
};

// Runs in the page after each Tab: what has the focus must show it, and stand where it can be seen.
const focused = () => {
  const [at, bar] = [document.activeElement, document.querySelector("nav").getBoundingClientRect().bottom];
  if (at === document.body) return null;
  const [style, box] = [getComputedStyle(at), at.getBoundingClientRect()];
  const what = `<${at.tagName.toLowerCase()} class="${at.className}"> ${at.textContent.trim().slice(0, 40)}`;
  if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 1) return `the focus is not seen on ${what}`;
  const covered = !at.closest("nav") && (box.bottom < bar || box.top > innerHeight);
  return covered ? `the focus is out of sight on ${what}` : "";
};
const tabs = async (tab) => {
  const found = [];
  for (let i = 0; i < 60; i++) {
    await tab.keyboard.press("Tab");
    const said = await tab.evaluate(focused);
    if (said === null) break;
    if (said) found.push(said);
  }
  return found;
};

for (const page of pages) {
  const home = page.includes("://") ? new URL(page).host : "";
  for (const width of [390, 1400]) {
    for (const colorScheme of ["light", "dark"]) {
      const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true, reducedMotion: "reduce" });
      const tab = await context.newPage();
      const where = `${basename(dirname(page))}/${basename(page)} ${width} ${colorScheme}`;
      tab.on("console", (message) => findings.push(`${where}: console: ${message.text()}`));
      tab.on("request", (request) => {
        const { protocol, host } = new URL(request.url());
        if (/^(http|ws)s?:$/.test(protocol) && host !== home) findings.push(`${where}: asked another host: ${request.url()}`);
      });
      tab.on("pageerror", (error) => findings.push(`${where}: error: ${error}`));
      await tab.goto(page.includes("://") ? page : `file://${page}`);
      await tab.waitForTimeout(page.includes("://") ? 1500 : 100);
      if (shots) await tab.screenshot({ path: join(shots, `${where.replace(/[^\w]+/g, "-")}.png`), fullPage: true });
      await tab.evaluate(() => [...document.querySelectorAll("details")].forEach((one) => { one.open = true; }));
      for (const line of await tab.evaluate(inspect)) findings.push(`${where}: ${line}`);
      for (const line of await tab.evaluate(ran)) findings.push(`${where}: ${line}`);
      if (colorScheme === "light") for (const line of await tabs(tab)) findings.push(`${where}: ${line}`);
      await tab.evaluate(axe);
      const { violations } = await tab.evaluate("axe.run(document, { resultTypes: ['violations'] })");
      for (const one of violations)
        findings.push(`${where}: axe ${one.impact}: ${one.id}: ${one.nodes.length}× ${one.nodes[0].html.slice(0, 150)} ${one.nodes[0].any[0]?.message ?? one.help}`);
      if (width > 1000 && colorScheme === "light") {
        await tab.setViewportSize({ width: 720, height: 1000 });  // of a sheet of paper
        await tab.emulateMedia({ media: "print" });
        const wide = await tab.evaluate(() => document.documentElement.scrollWidth);
        if (wide > 720 / 0.7) findings.push(`${where}: printed it is ${wide} wide, and a browser shrinks it to 720`);
      }
      await context.close();
    }
  }
}
await browser.close();
console.log(JSON.stringify(findings, null, 1));
