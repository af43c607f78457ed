// Draws the charts, those in sight first, and lets the filters act on all of them and on the tables.
const specs = JSON.parse(document.getElementById("specs").textContent);
const conditions = JSON.parse(document.getElementById("conditions").textContent);
const views = new Map();
const signals = new Map(Object.entries(specs).map(([id, spec]) => [id, new Set((spec.params ?? []).map(each => each.name))]));
const form = document.querySelector(".filters");
let shown = null;  // the conditions to be seen; null: all

// Colours are the page's own variables, so that a change to dark or to print needs no new drawing.
const config = {
  background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
  axis: { labelColor: "var(--quiet)", titleColor: "var(--quiet)", gridColor: "var(--line)", domainColor: "var(--line)",
          tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
};

function unpacked(spec) {
  for (const [name, { names, rows }] of Object.entries(spec.datasets)) {
    spec.datasets[name] = rows.map(row => Object.fromEntries(row.map((value, place) => [names[place], value])));
  }
  return spec;
}

async function draw(place) {
  if (views.has(place.id)) return;
  views.set(place.id, null);
  try {
    const { view } = await vegaEmbed(place, unpacked(specs[place.id]), { actions: false, renderer: "svg", config,
      tooltip: { theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light" } });
    views.set(place.id, view);
    await apply(place.id);
    place.dataset.drawn = "yes";
  } catch (error) {
    place.textContent = "This figure could not be drawn: " + error.message;
    console.error(place.id, error);
  }
}

async function apply(id) {
  const view = views.get(id);
  if (!view) return;
  if (signals.get(id).has("conditions")) view.signal("conditions", shown);
  const select = document.getElementById(id).closest("figure").querySelector("select.domain");
  if (select) view.signal("domain", select.value);
  await view.runAsync();
}

function filter() {
  const wanted = {};
  for (const box of form.querySelectorAll("input[data-factor]")) {
    (wanted[box.dataset.factor] ??= new Set());
    if (box.checked) wanted[box.dataset.factor].add(box.value);
  }
  const kept = conditions.flatMap((levels, index) => Object.entries(wanted).every(([factor, some]) => some.has(levels[factor])) ? [index] : []);
  shown = kept.length === conditions.length ? null : kept;
  document.getElementById("shown").textContent = `${kept.length} of ${conditions.length} conditions`;
  for (const row of document.querySelectorAll("tr[data-condition]")) row.hidden = shown !== null && !shown.includes(Number(row.dataset.condition));
  for (const id of views.keys()) apply(id);
}

if (form) {
  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", event => event.preventDefault());
}
for (const select of document.querySelectorAll("select.domain")) {
  select.addEventListener("change", () => {
    for (const chart of document.getElementById(select.dataset.figure).querySelectorAll(".chart")) apply(chart.id);
  });
}

// In sight first, the rest while nothing else happens: a long page opens at once, and is whole when it is printed.
const places = [...document.querySelectorAll(".chart")];
const sight = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => draw(entry.target)),
                                       { rootMargin: "400px" });
places.forEach(place => sight.observe(place));
const idle = window.requestIdleCallback ?? (work => setTimeout(work, 50));
(function next() {
  const place = places.find(place => !views.has(place.id));
  if (place) idle(() => draw(place).then(next));
})();

let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width) {
    width = contentRect.width;
    dispatchEvent(new Event("resize"));
  }
}).observe(document.querySelector("main"));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => { each.open = true; }));
