"use strict";
// Tables sort by a press on a heading. Without this script they are the same tables in the run's order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell ? cell.dataset.value || cell.textContent.trim() : "";
      };
      const number = (text) => parseFloat(text.replace(/[,[]/g, ""));
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        const gap = number(a) - number(b);
        const order = Number.isNaN(gap) ? a.localeCompare(b) : gap;
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
