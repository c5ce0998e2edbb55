/* The page works without this: a button for the theme, columns that sort, tables open in print. */
(() => {
  "use strict";
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => {
    button.textContent = dark() ? "Light theme" : "Dark theme";
  };
  button.hidden = false;
  label();
  system.addEventListener("change", label);
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
    try {
      localStorage.setItem("fastsc-theme", root.dataset.theme);
    } catch (error) {
      /* No storage: the choice holds until the page is closed. */
    }
  });

  /* Numbers by their full precision, other cells as text; what has no number comes last. */
  const compare = (a, b, place, sign) => {
    const [x, y] = [a, b].map((row) => row.cells[place]);
    const [p, q] = [x, y].map((cell) => cell.dataset.sort);
    if (p === undefined && q === undefined) {
      return sign * x.textContent.localeCompare(y.textContent, "en", { numeric: true });
    }
    if (p === undefined || q === undefined) return p === undefined ? 1 : -1;
    return sign * (Number(p) - Number(q));
  };
  for (const heading of document.querySelectorAll(".headings th")) {
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.textContent = heading.textContent;
    heading.replaceChildren(sorter);
    sorter.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = heading.closest("table").tBodies[0];
      const rows = [...body.rows];
      rows.sort((a, b) => compare(a, b, heading.cellIndex, down ? -1 : 1));
      body.append(...rows);
    });
  }

  /* In print every figure is there. */
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
