"use strict";
const at = (id) => document.getElementById(id);

for (const name of ["boxes", "heat"]) {
  at("show-" + name)?.addEventListener("change", (event) => {
    document.body.classList.toggle("no-" + name, !event.target.checked);
  });
}

// Classes: by name, and sorted by a column.
const table = at("class-table");
if (table) {
  const body = table.tBodies[0];
  at("class-filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    }
    at("class-count").textContent = count + (count === 1 ? " class" : " classes");
  });
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return column === 0 ? cell.textContent : Number(cell.dataset.value ?? cell.textContent);
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.ariaSort !== "ascending";
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        return (column === 0 ? x.localeCompare(y) : x - y) * (up ? 1 : -1);
      });
      body.append(...rows);
      for (const other of headings) other.ariaSort = other === heading ? (up ? "ascending" : "descending") : "none";
    });
  });
}

// Images: by class, and by whether the answer is right.
const cards = document.querySelectorAll(".card[data-class]");
function filter() {
  const wanted = at("image-filter").value.trim().toLowerCase();
  const right = at("image-right").value;
  let count = 0;
  for (const card of cards) {
    card.hidden = !card.dataset.class.toLowerCase().includes(wanted) || (right !== "" && card.dataset.right !== right);
    count += card.hidden ? 0 : 1;
  }
  at("image-count").textContent = count + (count === 1 ? " image" : " images");
}
at("image-filter")?.addEventListener("input", filter);
at("image-right")?.addEventListener("change", filter);
