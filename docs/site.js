// Tables on narrow screens: a cell knows its column's name, which site.css shows, and what scrolls is reached by key.
addEventListener("load", () => {
  for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, number) => { cell.dataset.head = names[number] ?? ""; });
    }
  }
  const reach = () => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
      box.scrollWidth > box.clientWidth ? box.setAttribute("tabindex", "0") : box.removeAttribute("tabindex");
    }
  };
  reach();
  addEventListener("resize", reach);
});
