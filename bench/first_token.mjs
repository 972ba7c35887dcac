// Seconds from pressing Enter to a painted first token, of the first and of the last column, as JSON. Run by play.py:
// node first_token.mjs NODE_MODULES CHROMIUM URL ROUNDS
import { createRequire } from "node:module";

const [modules, chromium, url, rounds] = process.argv.slice(2);
const { chromium: browserType } = createRequire(`${modules}/x.js`)("playwright-core");
const browser = await browserType.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
await page.goto(url);
await page.waitForSelector("#prompt");
await page.click("summary:has-text('Settings')");
await page.fill("[name=max_tokens]", "8");

// In the page itself, so that no message between browser and script is counted: the key, and the frame behind a token.
await page.evaluate(() => {
  addEventListener("keydown", (event) => {
    if (event.key === "Enter") globalThis.clock = { began: performance.now(), columns: new Map() };
  }, true);
  new MutationObserver(() => {
    document.querySelectorAll(".exchange:last-child .answer").forEach((cell, place) => {
      const { clock } = globalThis;
      if (!clock || clock.columns.has(place) || !cell.querySelector(".tok")?.textContent) return;
      clock.columns.set(place, 0);
      requestAnimationFrame(() => requestAnimationFrame(() => clock.columns.set(place, performance.now() - clock.began)));
    });
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
});

const found = [];
for (let round = 0; round < Number(rounds); round += 1) {
  if (round) await page.click("button:has-text('New')");
  await page.fill("#prompt", `How many apples are left when ${round} of ${20 + round} are eaten?`);
  await page.press("#prompt", "Enter");
  await page.waitForFunction(() => globalThis.clock && !document.querySelector(".send").disabled, null, { timeout: 300_000, polling: 100 });
  await page.waitForFunction(() => globalThis.clock.columns.size && ![...globalThis.clock.columns.values()].includes(0), null, { polling: 100 });
  found.push(await page.evaluate(() => [...globalThis.clock.columns.values()].map((one) => one / 1000)));
}
await browser.close();
process.stdout.write(`${JSON.stringify(found)}\n`);
