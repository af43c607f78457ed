// Draw every chart into its element, in the colors of the reader's light or dark theme.
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink"), quiet = style.getPropertyValue("--quiet");
  const line = style.getPropertyValue("--line");
  return {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line,
            labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    title: { color: ink },
  };
}

function draw() {
  for (const [name, spec] of Object.entries(specs)) {
    vegaEmbed(document.getElementById(name), spec, { actions: false, renderer: "svg", config: theme(),
      tooltip: { theme: dark.matches ? "dark" : "light" } });
  }
}

// Charts are resized on window events only. A scroll bar that appears later changes their width without such an event.
let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width) {
    width = contentRect.width;
    dispatchEvent(new Event("resize"));
  }
}).observe(document.querySelector("main"));

draw();
dark.addEventListener("change", draw);
