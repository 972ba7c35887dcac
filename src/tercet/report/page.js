// Theme switch, and the filter of the evaluation samples. The page is complete without it.
const root = document.documentElement;
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

for (const controls of document.querySelectorAll(".controls[data-for]")) {
  const section = document.getElementById(controls.dataset.for);
  const items = [...section.querySelectorAll(".item")];
  const texts = items.map((item) => item.textContent.toLowerCase());
  const fields = [...controls.querySelectorAll("select")];
  const search = controls.querySelector("input");
  const count = controls.querySelector("output");
  const more = section.querySelector("button.more");
  let most = 10;
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    items.forEach((item, i) => {
      const fits = fields.every((field) => !field.value || item.dataset[field.name] === field.value)
        && words.every((word) => texts[i].includes(word));
      found += fits ? 1 : 0;
      item.hidden = !fits || found > most;
    });
    count.textContent = `${found} of ${items.length}`;
    more.hidden = found <= most;
    more.textContent = `Show all ${found}`;
  };
  more.addEventListener("click", () => { most = Infinity; apply(); });
  controls.addEventListener("input", apply);
  controls.hidden = false;
  apply();
}
