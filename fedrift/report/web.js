// Request the state every few seconds and draw it. The user's selection is preserved.
const byId = id => document.getElementById(id);
const colors = JSON.parse(byId("colors").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const MAX_ROWS = colors.length;
let selected = null, userSelected = false, view = null, drawnKey = "", state = null;

const createNode = (tag, text = "", kind = "") => {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const formatNumber = (value, decimals, sign = false) => value === null ? "" : (sign && value >= 0 ? "+" : "") + value.toFixed(decimals);
const colorOf = id => colors[selected.indexOf(id) % MAX_ROWS];
const label = row => (row.stage && row.stage !== "main" && row.role !== "trial" ? `${row.stage}: ` : "") + row.condition;

function formatDuration(seconds) {
  const minutes = Math.round(seconds / 60);
  return seconds < 90 ? `${Math.round(seconds)} s` : minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function drawHeader() {
  byId("title").textContent = state.title;
  document.title = `${state.rounds_total ? Math.floor(100 * state.rounds_done / state.rounds_total) + " % " : ""}${state.title} · fedrift`;
  byId("question").textContent = state.question;
  const share = state.rounds_total ? 100 * state.rounds_done / state.rounds_total : 0;
  byId("bar").firstElementChild.style.width = `${share}%`;
  byId("bar").setAttribute("aria-valuenow", state.rounds_done);
  byId("bar").setAttribute("aria-valuemax", state.rounds_total);
  const counts = Object.entries(state.state_labels).filter(([name]) => state.counts[name]).map(([name, words]) => `${state.counts[name]} ${words}`);
  const left = state.seconds_left === null || state.is_complete ? "" : ` · about ${formatDuration(state.seconds_left)} left`;
  byId("counts").textContent = state.rounds_total ? `${counts.join(" · ")} · ${state.rounds_done} of ${state.rounds_total} rounds${left}` : "";
  byId("note").hidden = !state.note;
  byId("note").textContent = state.note;
  const select = byId("domain"), options = [...select.options].slice(1).map(option => option.value);
  if (options.join() !== state.domains.join()) {
    const current = select.value;
    select.replaceChildren(select.options[0], ...state.domains.map(name => new Option(name, name)));
    select.value = state.domains.includes(current) ? current : "";
  }
}

function createCell(run) {
  const words = {finished: "✓", failed: "✕", missing: "·"}[run.state] ?? `${run.rounds_done}/${run.rounds_total}`;
  const node = createNode("span", words, `cell ${run.state}`);
  node.style.setProperty("--part", `${run.rounds_total ? 100 * run.rounds_done / run.rounds_total : 0}%`);
  const lines = [`seed ${run.seed}, run ${run.run.slice(0, 6)}: ${state.state_labels[run.state]}, round ${run.rounds_done} of ${run.rounds_total}`];
  if (run.loss !== null) lines.push(`loss ${formatNumber(run.loss, 3)}`);
  if (run.gap !== null) lines.push(`gap to IID baseline ${formatNumber(run.gap, 3, true)}`);
  if (run.failure_reason) lines.push(run.failure_reason);
  node.title = lines.join("\n");
  node.setAttribute("aria-label", lines.join(", "));
  node.setAttribute("role", "img");
  return node;
}

function drawGrid() {
  const header = createNode("tr");
  for (const name of ["draw", "condition", ...state.seeds.map(seed => `seed ${seed}`), "loss", "gap to IID baseline"]) header.append(createNode("th", name));
  byId("grid").tHead.replaceChildren(header);
  const focus = document.activeElement?.dataset?.row;
  const body = state.groups.map(row => {
    const tr = createNode("tr", "", row.role), box = createNode("input"), select = createNode("td"), name = createNode("th", label(row));
    name.scope = "row";
    box.type = "checkbox";
    box.dataset.row = row.id;
    box.checked = selected.includes(row.id);
    box.disabled = !box.checked && selected.length >= MAX_ROWS;
    box.setAttribute("aria-label", `draw ${label(row)}`);
    box.addEventListener("change", () => {
      userSelected = true;
      selected = box.checked ? [...selected, row.id] : selected.filter(id => id !== row.id);
      drawGrid();
      draw();
    });
    select.append(box);
    tr.append(select, name);
    for (const seed of state.seeds) {
      const td = createNode("td"), run = row.runs.find(run => run.seed === seed);
      if (run) td.append(createCell(run));
      tr.append(td);
    }
    tr.append(createNode("td", formatNumber(row.loss, 3), "number"), createNode("td", formatNumber(row.gap, 3, true), "number"));
    return tr;
  });
  byId("grid").tBodies[0].replaceChildren(...body);
  if (focus) document.querySelector(`[data-row="${focus}"]`)?.focus();
  byId("states").replaceChildren(...Object.entries(state.state_labels).map(([name, words]) => {
    const part = createNode("span"), mark = createNode("span", {finished: "✓", failed: "✕", missing: "·"}[name] ?? "3/6", `cell ${name}`);
    mark.style.setProperty("--part", "50%");
    part.append(mark, ` ${words}`);
    return part;
  }));
}

function drawFindings() {
  const none = state.groups.length ? "There are no findings so far. Detectors need a few rounds, and the absence of findings does not exclude a failure." : "";
  byId("findings").replaceChildren(...(state.findings.length ? state.findings.map(each => {
    const item = createNode("li"), since = each.since === null ? "" : `, since round ${each.since}`;
    const also = each.also.length ? `, and in ${each.also.length} more` : "";
    item.append(createNode("span", each.grade, `grade ${each.grade}`), " ", createNode("strong", `${each.failure}, ${each.condition}${also}${since}. `), each.sentence);
    item.title = each.also.join("\n");
    return item;
  }) : [createNode("li", none, "quiet")]));
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [quiet, line] = ["--quiet", "--line"].map(name => style.getPropertyValue(name));
  return { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
           axis: { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12,
                   titleFontSize: 12, titleFontWeight: "normal" } };
}

function spec(values) {
  const only = kind => [{ filter: `datum.kind === '${kind}'` }];
  const color = { field: "id", type: "nominal", legend: null, scale: { domain: selected, range: selected.map(colorOf) } };
  const tooltip = [["condition", "condition"], ["run", "run"], ["round", "round"]].map(([field, title]) => ({ field, title, type: "nominal" }));
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", height: 320,
    data: { name: "points", values },
    encoding: {
      x: { field: "round", type: "quantitative", axis: { tickMinStep: 1, tickCount: 10, format: "d", grid: false }, scale: { nice: false, zero: false } },
      y: { field: "value", type: "quantitative", title: null, scale: { zero: false } },
      color, detail: { field: "run" },
    },
    layer: [
      { transform: only("seed"), mark: { type: "line", strokeWidth: 1, opacity: 0.35 } },
      { transform: only("iid_baseline"), mark: { type: "line", strokeWidth: 1.5, strokeDash: [5, 4] } },
      { transform: only("mean"), mark: { type: "line", strokeWidth: 2.5, point: { size: 18 } } },
      { mark: { type: "point", size: 140, opacity: 0, filled: true },
        encoding: { tooltip: [...tooltip, { field: "value", title: "loss", type: "quantitative", format: ".4f" }] } },
    ],
  };
}

async function draw() {
  const shown = state.groups.filter(row => selected.includes(row.id)).sort((a, b) => selected.indexOf(a.id) - selected.indexOf(b.id));
  byId("legend").replaceChildren(...shown.map(row => {
    const part = createNode("span");
    part.innerHTML = `<svg width="26" height="10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="${colorOf(row.id)}" stroke-width="3"/></svg> `;
    part.append(label(row));
    return part;
  }));
  const query = new URLSearchParams({ groups: selected.join(","), domain: byId("domain").value });
  const answer = await (await fetch(`curves.json?${query}`)).json();
  byId("incomplete").textContent = answer.incomplete.length ? `In some rounds the loss is off the scale or not finite: ${answer.incomplete.join("; ")}.` : "";
  const key = JSON.stringify([selected, dark.matches]);
  byId("chart").hidden = !answer.points.length;
  if (!answer.points.length) {
    if (selected.length) byId("incomplete").textContent ||= "No loss has been recorded yet.";
    return;
  }
  if (key !== drawnKey || !view) {
    drawnKey = key;
    view?.finalize();
    view = (await vegaEmbed(byId("chart"), spec(answer.points), { actions: false, renderer: "svg", config: theme(),
      tooltip: { theme: dark.matches ? "dark" : "light" } })).view;
    return;
  }
  await view.data("points", answer.points).runAsync();
}

async function refresh() {
  let wait = 2;
  try {
    state = await (await fetch("state.json")).json();
    wait = state.interval;
    if (!userSelected) selected = state.suggested;
    selected = selected.filter(id => state.groups.some(row => row.id === id));
    drawHeader();
    drawGrid();
    drawFindings();
    await draw();
    byId("error").hidden = true;
    byId("updated").textContent = `Updated at ${new Date().toLocaleTimeString()}; the next update follows in ${wait} s. This page does not change any run.`;
  } catch (error) {
    byId("error").hidden = false;
    byId("error").textContent = `The monitor does not answer (${error.message}). Check that \`fedrift monitor --web\` is still running. The page shows the last state that it received.`;
  }
  setTimeout(refresh, 1000 * wait);
}

byId("domain").addEventListener("change", draw);
dark.addEventListener("change", () => state && draw());
refresh();
