// The rollout browser: filters, the list of groups, the map of rounds, one group with its completions side by side.
// Texts of models and data only ever become text nodes.
{
  const { columns, stages } = JSON.parse(document.getElementById("data").textContent);
  const [form, list, found, map, pane] = ["filters", "groups", "found", "map", "group"].map((id) => document.getElementById(id));
  const state = { stage: null, shown: [], group: null, order: "sample" };

  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };
  const number = (value) => value === null || value === undefined ? "–" : `${+value.toPrecision(3)}`.replace("-", "−");
  // By reward, which trains: near the stage's highest, between, or none.
  const tone = (sample) => sample.reward > 0 ? (sample.reward >= 0.9 * state.stage.best ? "right" : "partly") : "wrong";
  const words = () => form.words.value.toLowerCase().split(/\s+/).filter(Boolean);

  const opened = stages.map((stage) => {
    stage.groups = stage.groups.map((group, index) => {
      const samples = group.samples.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
      for (const sample of samples) sample.words = `${sample.text}\n${sample.answer}`.toLowerCase();
      const rewards = samples.map((sample) => sample.reward);
      const prompt = stage.prompts[group.prompt];
      return {
        ...group, index, samples, prompt,
        words: `${prompt}\n${group.reference}\n${group.id}`.toLowerCase(),
        mean: rewards.reduce((a, b) => a + b, 0) / rewards.length,
        spread: Math.max(...rewards) - Math.min(...rewards),
        longest: Math.max(...samples.map((sample) => sample.length)),
        lag: samples[0].version === null ? 0 : group.step - samples[0].version,
      };
    });
    stage.best = Math.max(...stage.groups.flatMap((group) => group.samples.map((sample) => sample.reward)));
    return stage;
  });

  const fits = (sample, group, wanted) => {
    const { least, most } = wanted;
    return (!wanted.outcome || sample.outcome === wanted.outcome)
      && (!wanted.stop || sample.stop === wanted.stop)
      && (least === "" || sample.reward >= +least) && (most === "" || sample.reward <= +most)
      && wanted.words.every((word) => sample.words.includes(word) || group.words.includes(word));
  };

  const filter = () => {
    const wanted = { ...Object.fromEntries(new FormData(form)), words: words() };
    const keep = (group) => (!wanted.verifier || group.verifier === wanted.verifier)
      && (wanted.first === "" || group.step >= +wanted.first) && (wanted.last === "" || group.step <= +wanted.last)
      && (!wanted.signal || (wanted.signal === "yes") === group.spread > 0);
    const key = wanted.sort.replace("-", "");
    const sign = wanted.sort.startsWith("-") ? -1 : 1;
    state.shown = state.stage.groups.filter((group) => {
      group.fitting = new Set(keep(group) ? group.samples.filter((sample) => fits(sample, group, wanted)) : []);
      return group.fitting.size > 0;
    }).sort((a, b) => sign * (a[key] - b[key]) || a.index - b.index);
    const fitting = state.shown.reduce((sum, group) => sum + group.fitting.size, 0);
    found.textContent = `${state.shown.length} of ${state.stage.groups.length} groups, ${fitting.toLocaleString("en")} completions`;
    list.replaceChildren(...state.shown.map(entry));
    select(state.shown.includes(state.group) ? state.group : state.shown[0] ?? null);
  };

  const entry = (group) => {
    const cells = group.samples.map((sample) => make("span", `cell ${tone(sample)}${group.fitting.has(sample) ? "" : " other"}`));
    const item = make("div", "entry",
      make("div", "what", make("span", "", `round ${group.step} · ${group.verifier}`), make("span", "", number(group.mean))),
      make("div", "asked", group.prompt.slice(0, 300)), make("div", "cells", ...cells));
    item.id = `entry-${group.index}`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    item.addEventListener("click", () => select(group));
    return item;
  };

  const select = (group) => {
    for (const element of list.querySelectorAll('[aria-selected="true"]')) element.setAttribute("aria-selected", "false");
    state.group = group;
    draw();
    if (!group) {
      list.removeAttribute("aria-activedescendant");
      pane.replaceChildren(make("p", "soft", "No group has such a completion. Clear a filter."));
      return;
    }
    const item = document.getElementById(`entry-${group.index}`);
    item.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", item.id);
    const [top, bottom] = [item.offsetTop - list.offsetTop, item.offsetTop - list.offsetTop + item.offsetHeight];
    if (top < list.scrollTop || bottom > list.scrollTop + list.clientHeight) list.scrollTop = top - 60;
    history.replaceState(null, "", `#${new URLSearchParams({ stage: state.stage.counts.stage, round: group.step, group: group.id })}`);
    show(group);
  };

  const move = (by) => {
    const next = state.shown[state.shown.indexOf(state.group) + by];
    if (next) select(next);
  };

  const show = (group) => {
    const steps = make("div", "steps", ...[["← previous", -1], ["next →", 1]].map(([text, by]) => {
      const button = make("button", "", text);
      button.type = "button";
      button.disabled = !state.shown[state.shown.indexOf(group) + by];
      button.addEventListener("click", () => move(by));
      return button;
    }));
    const head = make("h2", "", `Round ${group.step} `, make("span", "soft small", `${group.verifier} · ${group.id} `));
    if (!group.spread) head.append(make("span", "pill", "all rewards alike"));
    const paid = group.samples.filter((sample) => sample.reward > 0).length;
    const facts = [["mean reward", number(group.mean)], ["rewarded", `${paid} of ${group.samples.length}`],
      ["longest", `${group.longest} tokens`]];
    if (group.lag) facts.push(["written", `${group.lag} round${group.lag > 1 ? "s" : ""} behind`]);
    const reference = make("details", "", make("summary", "", "Reference answer"), make("div", "inside", said(group.reference, "mono")));
    reference.open = group.reference.length < 300;
    const order = make("select", "", ...[["sample", "as written"], ["-reward", "by reward"], ["-length", "by length"], ["length", "shortest first"]]
      .map(([value, text]) => new Option(text, value, false, value === state.order)));
    order.setAttribute("aria-label", "Order of the completions");
    order.addEventListener("change", () => { state.order = order.value; cards(); });
    const grid = make("div", "completions");
    const cards = () => {
      const [key, sign] = [state.order.replace("-", ""), state.order.startsWith("-") ? -1 : 1];
      const sorted = [...group.samples].sort((a, b) => sign * (a[key] - b[key]) || a.sample - b.sample);
      grid.replaceChildren(...sorted.map((sample) => completion(sample, group)));
    };
    cards();
    pane.replaceChildren(
      make("div", "top", head, steps), said(group.prompt, "prompt"), ...(group.reference ? [reference] : []),
      make("div", "top", make("dl", "facts", ...facts.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value)))), order),
      grid, make("p", "small soft keys", make("kbd", "", "←"), " ", make("kbd", "", "→"), " previous and next group, ", make("kbd", "", "/"), " search"),
    );
  };

  const completion = (sample, group) => {
    const about = [sample.outcome, `stopped by ${sample.stop}`, `${sample.length} tokens`];
    const last = sample.version_last ?? sample.version;  // of a stream, weights may have come while it was written
    if (last !== null) about.push(last === sample.version ? `policy version ${last}` : `policy versions ${sample.version} to ${last}`);
    if (sample.replica) about.push(`by ${sample.replica}`);
    const card = make("section", `completion${group.fitting.has(sample) ? "" : " other"}`,
      make("div", "head", make("h3", "soft small", `#${sample.sample + 1}`), make("span", `pill ${tone(sample)}`, `reward ${number(sample.reward)}`)));
    card.querySelector("h3").style.margin = "0";
    if (sample.advantage !== null) card.append(advantage(sample.advantage, group));
    card.append(said(sample.text, ""));
    if (sample.answer) card.append(make("p", "small", make("span", "soft", "read as "), make("span", "mono", ...marked(sample.answer))));
    card.append(make("p", "small soft", `score ${number(sample.score)} · ${about.join(" · ")}`));
    const parts = Object.entries(sample.parts);
    if (parts.length > 1) card.append(make("div", "chips", ...parts.map(([name, score]) => make("span", "pill", `${name} ${number(score)}`))));
    return card;
  };

  const advantage = (value, group) => {
    const largest = Math.max(...group.samples.map((sample) => Math.abs(sample.advantage))) || 1;
    const bar = make("span", value < 0 ? "down" : "up");
    bar.style.width = `${50 * Math.abs(value) / largest}%`;
    return make("div", "advantage", make("span", "soft", `advantage ${value > 0 ? "+" : ""}${number(value)}`), make("span", "scale", bar));
  };

  const said = (text, name) => {
    const box = make("div", `said ${name}`, ...marked(text));
    box.tabIndex = 0;
    return box;
  };

  const marked = (text) => {
    const wanted = words().map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    if (!text) return [make("span", "soft", "nothing")];
    if (!wanted.length) return [text];
    return text.split(new RegExp(`(${wanted.join("|")})`, "gi")).map((piece, i) => i % 2 ? make("mark", "", piece) : piece);
  };

  const svg = (tag, values, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
    if (text) element.append(svg("title", {}), "");
    if (text) element.firstChild.textContent = text;
    return element;
  };

  const draw = () => {
    const { groups, rounds } = state.stage;
    const steps = rounds.map(([step]) => step);
    const values = [...groups.map((group) => group.mean), ...rounds.map(([, mean]) => mean)];
    const [first, last, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
    const width = Math.max(60, map.clientWidth - 22);  // a page that is not shown has no width
    const x = (step) => 8 + (width - 16) * (last > first ? (step - first) / (last - first) : 0.5);
    const y = (value) => 88 - 80 * (high > low ? (value - low) / (high - low) : 0.5);
    const picture = svg("svg", { viewBox: `0 0 ${width} 96`, role: "img", "aria-label": "Mean reward of every group by round" });
    picture.append(svg("polyline", { class: "mean", points: rounds.map(([step, mean]) => `${x(step)},${y(mean)}`).join(" ") }));
    const shown = new Set(state.shown);
    const inward = (group) => Math.min(width - 4, Math.max(4, x(group.step) + (group.index * 7 % 11 - 5) * 1.3));
    for (const group of [...groups].sort((a, b) => (a === state.group) - (b === state.group))) {
      const name = `dot${group.spread ? "" : " flat"}${shown.has(group) ? "" : " out"}${group === state.group ? " here" : ""}`;
      const dot = svg("circle", { class: name, cx: inward(group), cy: y(group.mean), r: group === state.group ? 5.5 : 3.5 },
        `round ${group.step}, mean reward ${number(group.mean)}`);
      if (shown.has(group)) dot.addEventListener("click", () => select(group));
      picture.append(dot);
    }
    const legend = make("p", "small soft", make("span", "", `round ${first}`),
      make("span", "", `mean reward of each group, ${number(low)} to ${number(high)}; the line is the mean of all completions`), make("span", "", `round ${last}`));
    map.replaceChildren(picture, legend);
  };

  const options = (select, values) => select.replaceChildren(new Option("all", ""), ...[...new Set(values)].sort().map((value) => new Option(value)));

  const open = (index) => {
    state.stage = opened[index];
    const { groups } = state.stage;
    const samples = groups.flatMap((group) => group.samples);
    options(form.verifier, groups.map((group) => group.verifier));
    options(form.outcome, samples.map((sample) => sample.outcome));
    options(form.stop, samples.map((sample) => sample.stop));
    const range = (inputs, values) => [Math.min(...values), Math.max(...values)].forEach((value, i) => { inputs[i].placeholder = value; });
    range([form.first, form.last], groups.map((group) => group.step));
    range([form.least, form.most], samples.map((sample) => sample.reward));
    state.group = null;
  };

  const follow = () => {  // #stage=grpo&round=12 opens the first group from that round on
    const wanted = new URLSearchParams(location.hash.slice(1));
    const index = Math.max(0, opened.findIndex((stage) => stage.counts.stage === wanted.get("stage")));
    if (opened[index] !== state.stage) {
      form.stage.value = index;
      open(index);
    }
    const late = state.stage.groups.filter((group) => group.step >= +(wanted.get("round") ?? 0));
    state.group = late.find((group) => group.id === wanted.get("group")) ?? late.find((group) => group.spread) ?? late[0] ?? null;
    filter();
  };

  form.hidden = false;
  document.getElementById("panes").hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    const stage = form.stage.value;
    setTimeout(() => { form.stage.value = stage; filter(); });
  });
  form.addEventListener("input", (event) => {
    if (event.target === form.stage) open(+form.stage.value);
    filter();
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", draw);
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select");
    if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
    const inside = event.target === list;
    const by = { ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1, ...(inside && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    if (by) {
      event.preventDefault();
      move(by);
    } else if (event.key === "/") {
      event.preventDefault();
      form.words.focus();
    } else if (event.key === "Escape" && typing) {
      typing.blur();
    }
  });
  follow();
}
