// Asks for the numbers every few seconds and draws them; what is chosen stays chosen.
const at = id => document.getElementById(id);
const colours = JSON.parse(at("colours").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const MOST = colours.length;
let chosen = null, touched = false, view = null, drawn = "", state = null;

const made = (tag, text = "", kind = "") => {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const digits = (value, places, sign = false) => value === null ? "" : (sign && value >= 0 ? "+" : "") + value.toFixed(places);
const colour = id => colours[chosen.indexOf(id) % MOST];
const label = row => (row.stage && row.stage !== "main" && row.role !== "trial" ? `${row.stage}: ` : "") + row.condition;

function lasting(seconds) {
  const minutes = Math.round(seconds / 60);
  return seconds < 90 ? `${Math.round(seconds)} s` : minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function head() {
  at("title").textContent = state.title;
  document.title = `${state.total ? Math.floor(100 * state.done / state.total) + "% " : ""}${state.title} · fedrift`;
  at("question").textContent = state.question;
  const share = state.total ? 100 * state.done / state.total : 0;
  at("bar").firstElementChild.style.width = `${share}%`;
  at("bar").setAttribute("aria-valuenow", state.done);
  at("bar").setAttribute("aria-valuemax", state.total);
  const said = Object.entries(state.words).filter(([name]) => state.counts[name]).map(([name, words]) => `${state.counts[name]} ${words}`);
  const left = state.left === null || state.over ? "" : ` · about ${lasting(state.left)} left`;
  at("counts").textContent = state.total ? `${said.join(" · ")} · ${state.done} of ${state.total} rounds${left}` : "";
  at("note").hidden = !state.note;
  at("note").textContent = state.note;
  const select = at("domain"), now = [...select.options].slice(1).map(option => option.value);
  if (now.join() !== state.domains.join()) {
    const kept = select.value;
    select.replaceChildren(select.options[0], ...state.domains.map(name => new Option(name, name)));
    select.value = state.domains.includes(kept) ? kept : "";
  }
}

function cell(run) {
  const words = {finished: "✓", failed: "✕", missing: "·"}[run.state] ?? `${run.round}/${run.rounds}`;
  const node = made("span", words, `cell ${run.state}`);
  node.style.setProperty("--part", `${run.rounds ? 100 * run.round / run.rounds : 0}%`);
  const told = [`seed ${run.seed}, run ${run.run.slice(0, 6)}: ${state.words[run.state]}, round ${run.round} of ${run.rounds}`];
  if (run.loss !== null) told.push(`loss ${digits(run.loss, 3)}`);
  if (run.gap !== null) told.push(`${digits(run.gap, 3, true)} to the IID baseline`);
  if (run.why) told.push(run.why);
  node.title = told.join("\n");
  node.setAttribute("aria-label", told.join(", "));
  node.setAttribute("role", "img");
  return node;
}

function grid() {
  const top = made("tr");
  for (const name of ["in the chart", "condition", ...state.seeds.map(seed => `seed ${seed}`), "loss", "gap to IID baseline"]) top.append(made("th", name));
  at("grid").tHead.replaceChildren(top);
  const focus = document.activeElement?.dataset?.row;
  const body = state.rows.map(row => {
    const line = made("tr", "", row.role), box = made("input"), first = made("td"), name = made("th", label(row));
    name.scope = "row";
    box.type = "checkbox";
    box.dataset.row = row.id;
    box.checked = chosen.includes(row.id);
    box.disabled = !box.checked && chosen.length >= MOST;
    box.setAttribute("aria-label", `draw ${label(row)}`);
    box.addEventListener("change", () => {
      touched = true;
      chosen = box.checked ? [...chosen, row.id] : chosen.filter(id => id !== row.id);
      grid();
      draw();
    });
    first.append(box);
    line.append(first, name);
    for (const seed of state.seeds) {
      const place = made("td"), run = row.runs.find(each => each.seed === seed);
      if (run) place.append(cell(run));
      line.append(place);
    }
    line.append(made("td", digits(row.loss, 3), "number"), made("td", digits(row.gap, 3, true), "number"));
    return line;
  });
  at("grid").tBodies[0].replaceChildren(...body);
  if (focus) document.querySelector(`[data-row="${focus}"]`)?.focus();
  at("states").replaceChildren(...Object.entries(state.words).map(([name, words]) => {
    const part = made("span"), mark = made("span", {finished: "✓", failed: "✕", missing: "·"}[name] ?? "3/6", `cell ${name}`);
    mark.style.setProperty("--part", "50%");
    part.append(mark, ` ${words}`);
    return part;
  }));
}

function findings() {
  const none = state.rows.length ? "Nothing so far. Detectors wait for a few rounds; one look is no certificate." : "";
  at("findings").replaceChildren(...(state.findings.length ? state.findings.map(each => {
    const item = made("li"), since = each.since === null ? "" : `, since round ${each.since}`;
    const also = each.also.length ? `, and in ${each.also.length} more` : "";
    item.append(made("span", each.grade, `grade ${each.grade}`), " ", made("strong", `${each.failure}, ${each.condition}${also}${since}. `), each.sentence);
    item.title = each.also.join("\n");
    return item;
  }) : [made("li", none, "quiet")]));
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [quiet, line] = ["--quiet", "--line"].map(name => style.getPropertyValue(name));
  return { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
           axis: { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12,
                   titleFontSize: 12, titleFontWeight: "normal" } };
}

function spec(values) {
  const own = kind => [{ filter: `datum.kind === '${kind}'` }];
  const paint = { field: "id", type: "nominal", legend: null, scale: { domain: chosen, range: chosen.map(colour) } };
  const tip = [["condition", "condition"], ["run", "of"], ["round", "round"]].map(([field, title]) => ({ field, title, type: "nominal" }));
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", height: 320,
    data: { name: "points", values },
    encoding: {
      x: { field: "round", type: "quantitative", axis: { tickMinStep: 1, tickCount: 10, format: "d", grid: false }, scale: { nice: false, zero: false } },
      y: { field: "value", type: "quantitative", title: null, scale: { zero: false } },
      color: paint, detail: { field: "run" },
    },
    layer: [
      { transform: own("seed"), mark: { type: "line", strokeWidth: 1, opacity: 0.35 } },
      { transform: own("iid_baseline"), mark: { type: "line", strokeWidth: 1.5, strokeDash: [5, 4] } },
      { transform: own("mean"), mark: { type: "line", strokeWidth: 2.5, point: { size: 18 } } },
      { mark: { type: "point", size: 140, opacity: 0, filled: true },
        encoding: { tooltip: [...tip, { field: "value", title: "loss", type: "quantitative", format: ".4f" }] } },
    ],
  };
}

async function draw() {
  const shown = state.rows.filter(row => chosen.includes(row.id)).sort((a, b) => chosen.indexOf(a.id) - chosen.indexOf(b.id));
  at("legend").replaceChildren(...shown.map(row => {
    const part = made("span");
    part.innerHTML = `<svg width="26" height="10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="${colour(row.id)}" stroke-width="3"/></svg> `;
    part.append(label(row));
    return part;
  }));
  const asked = new URLSearchParams({ rows: chosen.join(","), domain: at("domain").value });
  const answer = await (await fetch(`curves.json?${asked}`)).json();
  at("lost").textContent = answer.lost.length ? `Off the scale, or no number, in some rounds: ${answer.lost.join("; ")}.` : "";
  const key = JSON.stringify([chosen, dark.matches]);
  at("chart").hidden = !answer.points.length;
  if (!answer.points.length) {
    if (chosen.length) at("lost").textContent ||= "No loss has been written yet.";
    return;
  }
  if (key !== drawn || !view) {
    drawn = key;
    view?.finalize();
    view = (await vegaEmbed(at("chart"), spec(answer.points), { actions: false, renderer: "svg", config: theme(),
      tooltip: { theme: dark.matches ? "dark" : "light" } })).view;
    return;
  }
  await view.data("points", answer.points).runAsync();
}

async function look() {
  let wait = 2;
  try {
    state = await (await fetch("state.json")).json();
    wait = state.every;
    if (!touched) chosen = state.suggested;
    chosen = chosen.filter(id => state.rows.some(row => row.id === id));
    head();
    grid();
    findings();
    await draw();
    at("gone").hidden = true;
    at("at").textContent = `Looked at ${new Date().toLocaleTimeString()}, again every ${wait} s. Nothing on this page changes a run.`;
  } catch (error) {
    at("gone").hidden = false;
    at("gone").textContent = `No answer (${error.message}); is \`fedrift monitor --web\` still going on? What is shown is the last that came.`;
  }
  setTimeout(look, 1000 * wait);
}

at("domain").addEventListener("change", draw);
dark.addEventListener("change", () => state && draw());
look();
