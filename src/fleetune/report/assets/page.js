"use strict";
// A press on a heading sorts its table: up, down, and back to the run's own order. Without this script they are plain tables.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const text = (row, column) => {
    const cell = row.cells[column];
    return cell ? cell.dataset.value || cell.textContent.trim() : "";
  };
  const order = (column, numbers, sign) => (a, b) => {
    const [x, y] = [text(a, column), text(b, column)];
    if (!numbers) return sign * x.localeCompare(y, undefined, { numeric: true });
    const [m, n] = [x, y].map((told) => parseFloat(told.replace(/[,[<]/g, "")));
    if (Number.isNaN(m) || Number.isNaN(n)) return Number.isNaN(m) - Number.isNaN(n);
    return sign * (m - n);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      const now = next[head.getAttribute("aria-sort") || "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      let rows = original;
      if (now !== "none") {
        head.setAttribute("aria-sort", now);
        const sign = now === "ascending" ? 1 : -1;
        rows = [...original].sort(order(column, head.classList.contains("n"), sign));
      }
      body.append(...rows);
    });
  });
}
