// A walk over the page in a browser; prints what was seen as JSON. Run by test_browser.py:
// node walk.mjs NODE_MODULES CHROMIUM URL OUT PLANTED
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, chromium, url, out, planted] = process.argv.slice(2);
const require = createRequire(`${modules}/x.js`);
const { chromium: browserType } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const seen = { console: [], axe: {}, wide: {} };
const browser = await browserType.launch({ executablePath: chromium, args: ["--no-sandbox"] });

async function open(width, scheme, address = url) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme: scheme, acceptDownloads: true });
  const page = await context.newPage();
  page.on("console", (message) => seen.console.push(message.text()));
  page.on("pageerror", (error) => seen.console.push(`error: ${error.message}`));
  await page.goto(address);
  await page.waitForSelector("#prompt");
  return page;
}

const idle = (page) => page.waitForFunction(() => !document.querySelector(".send").disabled, null, { timeout: 120_000 });
const status = (page) => page.textContent(".status");

async function inspect(page, name) {
  await page.evaluate(`${axe};0`);
  const found = await page.evaluate(() => globalThis.axe.run());
  seen.axe[name] = found.violations.filter((one) => ["serious", "critical"].includes(one.impact)).map((one) => `${one.id}: ${one.nodes[0].html.slice(0, 160)}`);
  seen.wide[name] = await page.evaluate(() => [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => `${one.tagName}.${one.className}`));
  await page.screenshot({ path: `${out}/${name}.png` });
}

// ---- asked with the keyboard alone, streamed, stopped ----
const page = await open(1400, "light");
await page.keyboard.type("Tell me about the sea.");
await page.keyboard.press("Enter");
const began = Date.now();
await page.waitForSelector(".tok", { timeout: 60_000, state: "attached" });
seen.firstToken = Date.now() - began;
seen.growth = [];
for (let i = 0; i < 400 && (await page.isDisabled(".send")); i += 1) {
  seen.growth.push(await page.$$eval(".answer", (cells) => cells.map((cell) => cell.querySelectorAll(".tok").length)));
  await page.waitForTimeout(20);
}
await idle(page);
seen.columns = await page.$$eval(".answer h2", (heads) => heads.map((head) => head.textContent));
await page.focus(".answer .tokens");
await page.keyboard.press("ArrowRight");
await page.keyboard.press("ArrowRight");
await page.waitForFunction(() => document.querySelectorAll("#token-panel .chances .much").length > 1 && ![...document.querySelectorAll("#token-panel .much")].some((one) => one.textContent.startsWith("–")));
seen.panel = { stages: await page.$$eval("#token-panel .chances li", (rows) => rows.map((row) => row.innerText)), likely: await page.locator("#token-panel .likely li").count() };
await page.keyboard.press("Escape");
seen.panelGone = await page.isHidden("#token-panel");
await page.locator(".answer").nth(1).locator(".tok").nth(3).hover();
await page.waitForSelector("#token-panel:not([hidden])");
seen.hovered = await page.textContent("#token-panel .head");
await page.selectOption("[name=shade]", "change");
await page.waitForSelector(".answer:nth-child(2) .tok:is([class*=more], [class*=less])", { timeout: 30_000 }).catch(() => {});
seen.shaded = await page.locator(".tok:is([class*=more], [class*=less])").count();
await page.click("summary:has-text('Settings')");
await page.fill("[name=max_tokens]", "1500");
await page.fill("#prompt", "And much more of it.");
await page.press("#prompt", "Enter");
await page.waitForFunction(() => document.querySelectorAll(".exchange:last-child .tok").length > 8);
await page.keyboard.press("Escape");
await idle(page);
seen.stopped = await page.$$eval(".exchange:last-child .answer h2", (heads) => heads.filter((head) => head.textContent.includes("stopped")).length);
await page.fill("[name=max_tokens]", "24");
await page.keyboard.press("Tab");

// ---- a turn is edited: the old one stays as a branch ----
await page.locator(".exchange").first().locator(".asked button:has-text('Edit')").click();
await page.fill(".asked textarea", "Tell me about the hills.");
await page.click("button:has-text('Ask again')");
await idle(page);
seen.branches = await page.textContent(".asked .tools span");
await page.click("button[aria-label='Branch before']");
seen.back = await page.textContent(".exchange .words");

// ---- an item of the evaluations, its verdict beside the stored one ----
await page.click("button:has-text('New')");
await page.click("summary:has-text('Right or wrong')").catch(() => {});
await page.selectOption("[name=change]", "all");
await page.click("button:has-text('Next evaluation item')");
await page.waitForSelector(".verdict", { timeout: 120_000 });
await idle(page);
seen.item = await page.textContent(".where");
seen.verdicts = await page.$$eval(".answer", (cells) => cells.map((cell) => [cell.querySelector(".pill")?.textContent, [...cell.querySelectorAll(".verdict p")].at(-1)?.textContent]));
await inspect(page, "item-1400-light");

// ---- kept: a pair, a mark, a mended answer; traced: a planted sentence, and a fresh one ----
await page.locator(".answer").nth(1).locator("select").selectOption({ index: 1 });
await page.waitForFunction(() => document.querySelector(".status").textContent.includes("Kept"));
seen.pair = await status(page);
const mend = async (words) => {
  await page.locator(".answer").last().locator("button:text-is('Edit')").click();
  await page.fill(".edit textarea", words);
  await page.click("button:has-text('Keep as SFT row')");
  await page.waitForSelector(".edit", { state: "detached" });
  await page.locator(".answer").last().locator("button:text-is('Trace')").click();
  await page.waitForSelector(".trace", { timeout: 60_000 });
  const spans = await page.$$eval(".trace .span", (found) => found.map((one) => one.textContent));
  return { spans, rows: await page.$$eval(".trainrow", (rows) => rows.map((row) => row.innerText.slice(0, 200))) };
};
seen.planted = await mend(planted);
await inspect(page, "trace-1400-light");
await page.locator(".answer").last().locator("button:text-is('Tokens')").click();
seen.fresh = await mend("Zebras quietly invented nineteen umbrellas while purple theorems hummed beside the locksmith's violin.");

// ---- one file, opened without a network ----
const [download] = await Promise.all([page.waitForEvent("download"), page.click("button:has-text('Save')")]);
await download.saveAs(`${out}/frozen.html`);
const offline = await browser.newContext({ viewport: { width: 1400, height: 900 }, offline: true });
const frozen = await offline.newPage();
const requests = [];
frozen.on("request", (request) => requests.push(request.url()));
frozen.on("console", (message) => seen.console.push(`frozen: ${message.text()}`));
frozen.on("pageerror", (error) => seen.console.push(`frozen: ${error.message}`));
await frozen.goto(`file://${out}/frozen.html`);
await frozen.waitForSelector(".answer .tok", { state: "attached" });
await frozen.locator(".answer").nth(1).locator(".tok").nth(3).hover();
await frozen.waitForSelector("#token-panel:not([hidden])");
seen.frozen = { requests: requests.filter((one) => !one.startsWith("data:")).length, verdicts: await frozen.locator(".verdict").count(), traces: await frozen.locator(".trace").count() };
await inspect(frozen, "frozen-1400-light");

// ---- the link, on a phone and in the dark ----
await page.click("button:has-text('Link')");
await page.waitForFunction(() => location.hash.startsWith("#s="));
const link = page.url();
for (const [width, scheme] of [[390, "light"], [390, "dark"], [1400, "dark"]]) {
  const other = await open(width, scheme, link);
  await other.waitForFunction(() => document.querySelector("#prompt").value !== "");
  seen.linked = await other.inputValue("[name=max_tokens]");
  await other.press("#prompt", "Enter");
  await other.waitForSelector(".verdict", { timeout: 120_000 });
  await idle(other);
  await other.locator(".answer").nth(1).locator(".tok").nth(2).click();
  await other.waitForSelector("#token-panel:not([hidden])");
  await inspect(other, `item-${width}-${scheme}`);
  await other.context().close();
}

// ---- with the keyboard alone: asked, graded, traced, kept, saved; where the focus is can be seen ----
const keys = await open(1400, "light", link);
await keys.waitForFunction(() => document.querySelector("#prompt").value !== "" && document.activeElement.id === "prompt");
await keys.keyboard.press("Enter");
await keys.waitForSelector(".verdict", { timeout: 120_000 });
await idle(keys);
const unseen = [];
const tabTo = async (selector) => {
  for (let i = 0; i < 300; i += 1) {
    await keys.keyboard.press("Tab");
    const [here, ring, name] = await keys.evaluate((wanted) => {
      const { activeElement: one } = document;
      return [one.matches(wanted), getComputedStyle(one).outlineStyle !== "none", one.outerHTML.slice(0, 80)];
    }, selector);
    if (!ring && !name.startsWith("<body")) unseen.push(name);
    if (here) return true;
  }
  return false;
};
seen.keyboard = { reached: {}, unseen };
for (const name of ["#theme", "summary", "[name=shade]", ".chip", ".asked button", ".send", "[aria-label^='Good']", "[aria-label^='Edit the']"]) seen.keyboard.reached[name] = await tabTo(name);
await tabTo("[aria-label$='is better than']");
await keys.keyboard.press("ArrowDown");
await keys.waitForFunction(() => document.querySelector(".status").textContent.includes("Kept"));
await tabTo("[aria-label^='Trace']");
await keys.keyboard.press("Enter");
await keys.waitForSelector(".trace", { timeout: 60_000 });
await tabTo("[aria-label^='Save']");
const [saved] = await Promise.all([keys.waitForEvent("download"), keys.keyboard.press("Enter")]);
seen.keyboard.saved = saved.suggestedFilename();
writeFileSync(`${out}/seen.json`, JSON.stringify(seen, null, 1));
await browser.close();
