// The little that the page's own views do in the browser: send clicks, show the weights of an attention map, and keep
// the focus where it was. Texts come from `data-` attributes and go into `textContent`, never into HTML.
window.scratchGPT = (() => {
  const percent = (weight) => `${(100 * weight).toFixed(1)} %`;

  function attach(element, trigger, watch) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-pick]");
      if (!button) return;
      if ("position" in button.dataset || button.classList.contains("sg-head")) press(element, button);
      trigger("select", JSON.parse(button.dataset.pick));
      if ("position" in button.dataset) readRow(Number(button.dataset.position));
    });
    element.addEventListener("focusin", (event) => { element.lastKey = event.target.dataset.key; });
    element.addEventListener("focusout", (event) => { if (event.relatedTarget) element.lastKey = undefined; });
    element.addEventListener("pointermove", (event) => fromPointer(event));
    element.addEventListener("pointerdown", (event) => fromPointer(event));
    element.addEventListener("keydown", (event) => fromKeys(event));
    watch("value", () => { refocus(element); prepare(element); });
    prepare(element);
  }

  function press(element, button) {
    for (const other of element.querySelectorAll("[aria-pressed=true]")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", "true");
  }

  function refocus(element) {
    const found = element.lastKey && element.querySelector(`[data-key="${CSS.escape(element.lastKey)}"]`);
    if (found) found.focus({ preventScroll: true });
  }

  // ---- attention map: row `query` looks at column `key`

  function prepare(element) {
    const map = element.querySelector(".sg-map");
    if (map) show(map, JSON.parse(map.dataset.position), null);
  }

  function data(map) {
    if (map.source !== map.dataset.weights) {  // gradio changes the attributes of an element that stays
      map.source = map.dataset.weights;
      map.parsed = { weights: JSON.parse(map.dataset.weights), labels: JSON.parse(map.dataset.labels) };
    }
    return map.parsed;
  }

  function readRow(query) {
    const map = document.querySelector("#inside-map .sg-map");
    if (map && query < data(map).weights.length) show(map, query, null);
  }

  function show(map, query, key) {
    const { weights, labels } = data(map);
    const row = weights[query], size = weights.length;
    map.at = [query, key];
    const line = map.querySelector(".sg-row");
    line.style.cssText = `display:block;top:${(100 * query) / size}%;height:${100 / size}%`;
    for (const label of map.querySelectorAll(".sg-key")) {
      const number = Number(label.dataset.key);
      label.style.setProperty("--heat", number < row.length ? Math.sqrt(row[number]) : 0);
      label.classList.toggle("sg-query", number === query);
    }
    map.querySelector(".sg-reading").textContent = sentence(labels, row, query, key);
  }

  function sentence(labels, row, query, key) {
    const name = (number) => `"${labels[number]}" (${number + 1})`;
    if (key !== null && key > query) return `${name(query)} cannot see ${name(key)}: it comes later.`;
    if (key !== null) return `${name(query)} looks at ${name(key)}: ${percent(row[key])}.`;
    const best = row.map((weight, number) => [weight, number]).sort((one, other) => other[0] - one[0]).slice(0, 3);
    return `${name(query)} looks most at ${best.map(([weight, number]) => `${name(number)} ${percent(weight)}`).join(", ")}.`;
  }

  function fromPointer(event) {
    const square = event.target.closest(".sg-square");
    if (!square) return;
    const map = square.closest(".sg-map"), size = data(map).weights.length, box = square.getBoundingClientRect();
    const cell = (part) => Math.min(size - 1, Math.max(0, Math.floor(part * size)));
    show(map, cell((event.clientY - box.top) / box.height), cell((event.clientX - box.left) / box.width));
  }

  function fromKeys(event) {
    const square = event.target.closest(".sg-square");
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!square || !move) return;
    event.preventDefault();
    const map = square.closest(".sg-map"), size = data(map).weights.length, [query, key] = map.at;
    const inside = (value) => Math.min(size - 1, Math.max(0, value));
    show(map, inside(query + move[0]), inside((key ?? query) + move[1]));
  }

  return { attach };
})();
