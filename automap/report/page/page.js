"use strict";
// Filters the weights: every word typed must occur in a weight's name, expression, size or evidence.
(() => {
  const MOST_OPEN = 300; // weights; blocks beyond stay closed until they are clicked
  const form = document.querySelector("form.filter");
  const box = form.querySelector("input");
  const tally = form.querySelector("output");
  let blocks = null;

  const textOf = (element) => element.textContent.toLowerCase();
  const show = (element, isShown) => {
    if (element.hidden === isShown) element.hidden = !isShown;
  };

  function index() {
    return [...document.querySelectorAll("#weights .block")].map((block) => ({
      element: block,
      wasOpen: block.open,
      rows: [...block.querySelectorAll(".row")].map((row) => {
        const cells = textOf(row.querySelector(".cells"));
        const details = row.querySelector("details");
        const items = details ? [...details.querySelector("ol").children] : [];
        const members = items.map((item) => ({ element: item, text: textOf(item) }));
        return { element: row, details, cells, members };
      }),
    }));
  }

  function countIn(row, words) {
    const isWhole = words.every((word) => row.cells.includes(word));
    let hits = 0;
    for (const member of row.members) {
      const fits = isWhole || words.every((word) => member.text.includes(word) || row.cells.includes(word));
      show(member.element, fits);
      hits += fits;
    }
    if (row.details) row.details.open = words.length > 0 && !isWhole && hits > 0 && hits <= 24;
    return row.members.length ? hits : +isWhole;
  }

  function filter() {
    blocks ??= index();
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const block of blocks) {
      let hits = 0;
      for (const row of block.rows) {
        const inRow = countIn(row, words);
        show(row.element, inRow > 0);
        hits += inRow;
      }
      found += hits;
      show(block.element, hits > 0);
      block.element.open = words.length ? found <= MOST_OPEN : block.wasOpen;
    }
    tally.textContent = words.length ? (found === 1 ? "1 weight" : `${found} weights`) : "";
  }

  form.hidden = false;
  box.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
})();
