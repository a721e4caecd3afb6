"use strict";
// Filters and sorts the index's rows; without it the table is whole and in order of frequency.
const table = document.querySelector("table.index"), body = table.tBodies[0], rows = Array.from(body.rows);
const search = document.getElementById("search"), shown = document.getElementById("shown");

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    n += row.hidden ? 0 : 1;
  }
  shown.textContent = `Showing ${n} of ${rows.length}`;
}

function sortBy(th) {
  const column = th.cellIndex, falling = th.getAttribute("aria-sort") !== "descending";
  const numeric = th.classList.contains("n");
  const key = (row) => {
    const text = row.cells[column].textContent.trim();
    return numeric ? (text === "" ? -Infinity : Number(row.cells[column].dataset.value ?? text)) : text;
  };
  const sign = falling ? -1 : 1;
  rows.sort((a, b) => { const x = key(a), y = key(b); return sign * (x < y ? -1 : x > y ? 1 : 0); });
  for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", falling ? "descending" : "ascending");
  body.append(...rows);
}

search.addEventListener("input", filter);
for (const th of table.tHead.rows[0].cells) th.querySelector("button").addEventListener("click", () => sortBy(th));
