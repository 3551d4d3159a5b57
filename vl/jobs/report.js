"use strict";
const cards = Array.from(document.querySelectorAll("#cards article"));
const texts = cards.map((card) => card.textContent.toLowerCase());
const [search, show, order, count] = ["search", "show", "order", "count"].map((id) => document.getElementById(id));

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  cards.forEach((card, i) => {
    const chosen = !show.value || card.dataset.kinds.split(" ").includes(show.value);
    card.hidden = !(chosen && words.every((word) => texts[i].includes(word)));
    shown += card.hidden ? 0 : 1;
  });
  count.textContent = `${shown.toLocaleString("en")} shown`;
}

function sort() {
  const down = order.value.startsWith("-");
  const key = order.value.replace("-", "");
  const by = (card) => Number(card.dataset[key]) * (down ? -1 : 1);
  const place = (card) => Number(card.dataset.place);
  const sorted = cards.slice().sort((a, b) => by(a) - by(b) || place(a) - place(b));
  document.getElementById("cards").replaceChildren(...sorted);
}

document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
search.addEventListener("input", filter);
show.addEventListener("change", filter);
order.addEventListener("change", sort);
filter();
