// Asks for the store every few seconds and shows it. Texts only ever become text nodes; drawings are parsed as SVG.
{
  const [list, pane, when, machine] = ["stages", "stage", "when", "machine"].map((id) => document.getElementById(id));
  const state = { open: null, tags: {}, every: 2, shown: "", entries: new Map(), timer: 0 };

  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };
  const number = (value) => value === null || value === undefined ? "–" : Math.abs(value) >= 1e5 ? value.toExponential(2) : `${+value.toPrecision(3)}`.replace("-", "−");
  const clock = (seconds) => {
    const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
    return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${rest} s` : `${rest} s`;
  };
  const size = (bytes) => bytes >= 2 ** 40 ? `${(bytes / 2 ** 40).toFixed(1)} TiB` : `${(bytes / 2 ** 30).toFixed(bytes < 2 ** 33 ? 1 : 0)} GiB`;
  const bar = (share, label) => {
    const element = make("progress");
    [element.max, element.value] = [1, share];
    element.setAttribute("aria-label", label);
    return element;
  };
  const named = (name) => name.replaceAll("_", " ");

  const ask = async (path) => {  // null where nothing has changed
    const tag = state.tags[path];
    const answer = await fetch(path, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (answer.status === 304) return null;
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    state.tags[path] = answer.headers.get("etag");
    return found;
  };

  const load = (found) => {
    const { cpu, cores, memory, disk, cards } = found;
    const facts = [];
    const part = ([used, all]) => [`${size(used)} of ${size(all)}`, used / all];
    if (cpu !== null) facts.push([`Processor, ${cores} cores`, `${Math.round(100 * cpu)} %`, cpu]);
    if (memory) facts.push(["Memory", ...part(memory)]);
    for (const card of cards) facts.push([card.name, `${Math.round(100 * card.load)} %, ${part(card.memory)[0]}`, card.load]);
    facts.push(["Disk", `${size(disk[0])} free`, 1 - disk[0] / disk[1]]);
    machine.replaceChildren(...facts.map(([name, text, share]) => make("div", "", make("dt", "", name), make("dd", "", text, bar(share, name)))));
  };

  const progress = (stage) => {
    if (!stage.of) return [];
    const left = stage.left === null ? "" : ` · ${clock(stage.left)} left`;
    return [bar(stage.done / stage.of, `${stage.name}: share done`), make("span", "small soft", `${stage.done.toLocaleString("en")} of ${stage.of.toLocaleString("en")}${left}`)];
  };

  const entry = (stage) => {
    const button = make("button", "entry",
      make("span", "line", make("b", "", stage.name), make("span", `pill ${stage.state}`, stage.state)),
      make("span", "line small soft", make("span", "", stage.kind), make("span", "", stage.state === "running" || stage.seconds === null ? "" : clock(stage.seconds))));
    if (stage.alerts) button.append(make("span", "small warn", `${stage.alerts} alert${stage.alerts > 1 ? "s" : ""}`));
    if (stage.state === "running") button.append(...progress(stage));
    button.type = "button";
    button.dataset.place = stage.place;
    button.setAttribute("aria-current", `${stage.place === state.open}`);
    button.addEventListener("click", () => { location.hash = new URLSearchParams({ stage: stage.place }); });
    return button;
  };

  const GROUPS = [["Running", ["running"]], ["Ended early", ["failed", "stopped", "damaged"]], ["Finished", ["done"]]];
  const overview = (found) => {
    state.every = found.every;
    state.stages = found.stages;
    load(found.machine);
    const focused = document.activeElement?.dataset?.place;
    const parts = GROUPS.flatMap(([title, states]) => {
      const own = found.stages.filter((stage) => states.includes(stage.state));
      return own.length ? [make("h2", "", `${title} (${own.length})`), ...own.map(entry)] : [];
    });
    if (found.more) parts.push(make("p", "small soft", `${found.more} older stages are not listed.`));
    list.replaceChildren(...(parts.length ? parts : [make("p", "soft", "Nothing stands in this store yet.")]));
    if (focused) list.querySelector(`[data-place="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  };

  const drawing = (curve) => {
    const parsed = new DOMParser().parseFromString(curve.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '), "image/svg+xml");
    const said = make("span", "soft small", `${number(curve.last)} at step ${curve.step}`);
    return make("figure", "panel", make("figcaption", "", make("h4", "", curve.title), said), document.importNode(parsed.documentElement, true));
  };

  const said = (one) => {
    const text = make("div", "said", one.text || "nothing");
    text.tabIndex = 0;
    const tone = one.good === null ? "" : one.good ? "right" : "wrong";
    return make("div", "side", make("h4", "", make("span", "soft", one.about), make("span", `pill ${tone}`, one.figure)), make("p", "small", one.asked.slice(0, 400)), text);
  };

  const detail = (found) => {
    const { stage } = found;
    const opened = new Set([...pane.querySelectorAll("details[open]")].map((one) => one.dataset.name));
    const fold = (name, about, ...children) => {
      const element = make("details", "", make("summary", "", `${name} `, make("span", "soft", about)), make("div", "inside", ...children));
      element.dataset.name = name;
      element.open = opened.has(name);
      return element;
    };
    const parts = [make("div", "top", make("h2", "", stage.name), make("span", `pill ${stage.state}`, stage.state),
      make("span", "soft small", [stage.kind, stage.key, stage.recipe && `recipe ${stage.recipe}`].filter(Boolean).join(" · ")))];
    parts.push(...progress(stage));
    if (stage.note) parts.push(make("p", stage.state === "running" ? "small soft" : "note small", stage.note));
    const facts = Object.entries(stage.figures).map(([name, value]) => [named(name), number(value)]);
    if (stage.seconds !== null) facts.unshift(["time", clock(stage.seconds)]);
    const from = Object.keys(found.inputs);
    if (from.length) facts.push(["made from", from.join(", ")]);
    parts.push(make("dl", "facts figures", ...facts.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value)))));
    const links = Object.entries({ report: ["page", "Open the report"], rollouts: ["rollouts", "Browse the rollouts"], data: ["data", "Open the data page"] }).filter(([name]) => found.pages[name]);
    if (links.length) parts.push(make("p", "", ...links.map(([, [path, text]]) => Object.assign(make("a", "", text), { href: `/${path}/${encodeURIComponent(stage.folder)}` }))));
    for (const one of found.alerts.raised ?? []) parts.push(make("p", "note bad small", make("b", "", `${one.title} (round ${one.first}): `), one.message));
    const [main, more] = [true, false].map((wanted) => found.curves.filter((curve) => curve.main === wanted));
    if (main.length) parts.push(make("h3", "", "Curves"), make("div", "panels", ...main.map(drawing)));
    if (more.length) parts.push(fold("More curves", `${more.length}`, make("div", "panels", ...more.map(drawing))));
    if (found.recent.length) parts.push(make("h3", "", "Written last"), make("div", "sides recent", ...found.recent.map(said)));
    if (found.log) parts.push(fold("Log", "its end", Object.assign(make("pre", "said", found.log), { tabIndex: 0 })));
    const scrolled = [...pane.querySelectorAll(".said")].map((one) => one.scrollTop);
    pane.replaceChildren(...parts);
    pane.querySelectorAll(".said").forEach((one, i) => { one.scrollTop = scrolled[i] ?? 0; });
  };

  const follow = () => {
    state.open = new URLSearchParams(location.hash.slice(1)).get("stage");
    state.tags = {};
    for (const one of list.querySelectorAll(".entry")) one.setAttribute("aria-current", `${one.dataset.place === state.open}`);
    refresh();
  };

  const refresh = async () => {
    clearTimeout(state.timer);
    if (document.hidden) return;
    try {
      const found = await ask("/store");
      if (found) overview(found);
      state.open ??= state.stages[0]?.place ?? null;
      const stage = state.stages.find((one) => one.place === state.open);  // a draft that was committed keeps its place
      const shown = stage && await ask(`/stage/${encodeURIComponent(stage.folder)}`);
      if (shown) detail(shown);
      if (!stage) pane.replaceChildren(make("p", "soft", state.open ? "This stage is not in the store any more." : ""));
      for (const one of list.querySelectorAll(".entry")) one.setAttribute("aria-current", `${one.dataset.place === state.open}`);
      when.textContent = `at ${new Date().toLocaleTimeString("en-GB")}, every ${state.every} s`;
    } catch (error) {
      when.textContent = `the server gives no answer (${error.message}); asked again in a moment`;
    }
    state.timer = setTimeout(refresh, 1000 * state.every);
  };

  addEventListener("hashchange", follow);
  document.addEventListener("visibilitychange", refresh);
  follow();
}
