// Draw the charts, visible ones first, and apply the filters to all charts and tables.
const specs = JSON.parse(document.getElementById("specs").textContent);
const conditions = JSON.parse(document.getElementById("conditions").textContent);
const views = new Map();
const signals = new Map(Object.entries(specs).map(([id, spec]) => [id, new Set((spec.params ?? []).map(param => param.name))]));
const form = document.querySelector(".filters");
let shown = null;  // indices of the selected conditions; null means all

// Colors refer to the page's CSS variables, so that a change to the dark theme or to print needs no redrawing.
const config = {
  background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
  axis: { labelColor: "var(--quiet)", titleColor: "var(--quiet)", gridColor: "var(--line)", domainColor: "var(--line)",
          tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
};

function unpack(spec) {
  for (const [name, { names, rows }] of Object.entries(spec.datasets)) {
    spec.datasets[name] = rows.map(row => Object.fromEntries(row.map((value, index) => [names[index], value])));
  }
  return spec;
}

async function draw(element) {
  if (views.has(element.id)) return;
  views.set(element.id, null);
  try {
    const { view } = await vegaEmbed(element, unpack(specs[element.id]), { actions: false, renderer: "svg", config,
      tooltip: { theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light" } });
    views.set(element.id, view);
    await apply(element.id);
    element.dataset.drawn = "yes";
  } catch (error) {
    element.textContent = "This figure could not be drawn: " + error.message;
    console.error(element.id, error);
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
  const selected = {};
  for (const box of form.querySelectorAll("input[data-factor]")) {
    (selected[box.dataset.factor] ??= new Set());
    if (box.checked) selected[box.dataset.factor].add(box.value);
  }
  const matching = conditions.flatMap((levels, index) => Object.entries(selected).every(([factor, allowed]) => allowed.has(levels[factor])) ? [index] : []);
  shown = matching.length === conditions.length ? null : matching;
  document.getElementById("shown").textContent = `${matching.length} of ${conditions.length} conditions`;
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

// Visible charts are drawn first and the others when the browser is idle: a long page opens quickly, and all charts exist when it is printed.
const elements = [...document.querySelectorAll(".chart")];
const observer = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => draw(entry.target)),
                                          { rootMargin: "400px" });
elements.forEach(element => observer.observe(element));
const idle = window.requestIdleCallback ?? (callback => setTimeout(callback, 50));
(function next() {
  const element = elements.find(element => !views.has(element.id));
  if (element) idle(() => draw(element).then(next));
})();

let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width) {
    width = contentRect.width;
    dispatchEvent(new Event("resize"));
  }
}).observe(document.querySelector("main"));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(details => { details.open = true; }));
