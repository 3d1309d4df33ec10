"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const rows = content.rows;
const table = document.getElementById("table");
const body = table.tBodies[0];
const order = [...body.rows];
let baseline = content.baseline;

// Small parts of a document. Text is always text: nothing here is ever read as HTML.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function announce(text) {
  document.getElementById("announce").textContent = text;
}

// Speed-ups: the same as speedup() in fastdiff/latency.py.

function runOf(row) {
  return row.same_as || row.cell;
}

function halfWidth(row) {
  const interval = row.latency_s.ci95;
  return interval && interval[0] > 0 ? Math.log(interval[1] / interval[0]) / 2 : null;
}

function speedup(row, base) {
  if (!base || !row.latency_s || !base.latency_s || !row.latency_s.median || !base.latency_s.median) return null;
  if (runOf(row) === runOf(base)) return { ratio: 1, ci95: null };
  const ratio = base.latency_s.median / row.latency_s.median;
  const widths = [halfWidth(row), halfWidth(base)];
  if (widths.includes(null)) return { ratio, ci95: null };
  const spread = Math.hypot(...widths);
  return { ratio, ci95: [ratio * Math.exp(-spread), ratio * Math.exp(spread)] };
}

function showSpeedups() {
  const base = rows[baseline];
  const column = table.querySelector('[data-name="speed-up"]').dataset.column;
  for (const cell of body.querySelectorAll("[data-speedup-of]")) {
    const row = rows[cell.dataset.speedupOf];
    const found = speedup(row, base);
    row.sorts[column] = found ? found.ratio : null;
    const both = element("span", { class: "both" }, element("span", {}, found ? `${found.ratio.toFixed(2)}×` : "-"));
    if (found && found.ci95) both.append(element("small", {}, found.ci95.map((end) => end.toFixed(2)).join(" to ")));
    else if (runOf(row) === (base && runOf(base))) both.append(element("small", {}, "baseline"));
    cell.replaceChildren(both);
  }
  for (const told of document.querySelectorAll("[data-speedup]")) {
    const found = speedup(rows[told.dataset.speedup], base);
    const itself = base && runOf(rows[told.dataset.speedup]) === runOf(base);
    told.textContent = itself ? "the baseline, " : found ? `${found.ratio.toFixed(2)}× the baseline's speed, ` : "";
  }
  const over = document.getElementById("over");
  if (over) over.textContent = base ? `${base.place}, ${base.label}${base.disturbed ? " (disturbed: every speed-up is doubtful)" : ""}` : "no baseline";
}

// The table.

function compared(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(column, direction) {
  const sign = direction === "descending" ? -1 : 1;
  order.sort((first, second) => {
    const [a, b] = [first, second].map((each) => rows[each.dataset.cell].sorts[column]);
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * compared(a, b) || rows[first.dataset.cell].place - rows[second.dataset.cell].place;
  });
  const placed = document.createDocumentFragment();
  for (const each of order) {
    const details = detailsOf(each);
    placed.append(each);
    if (details) placed.append(details);
  }
  body.append(placed);
  for (const heading of table.tHead.rows[0].cells) heading.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", direction);
}

table.tHead.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const now = button.parentElement.getAttribute("aria-sort");
  const other = { ascending: "descending", descending: "ascending" };
  const direction = other[now] || button.dataset.first;
  sortBy(Number(button.dataset.column), direction);
  announce(`sorted by ${button.textContent}, ${direction}`);
});

function wordsOf(row) {
  row.words ??= [
    row.cell, row.place, row.label, row.values.join(" "), row.status, row.reason, row.instead, row.choices,
    row.applied.join(" "), row.notices.join(" "),
  ].join(" ").toLowerCase();
  return row.words;
}

function filter() {
  const wanted = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = document.getElementById("status").value;
  const chosen = [...document.querySelectorAll("[data-key]")].filter((each) => each.value);
  let shown = 0;
  for (const each of order) {
    const row = rows[each.dataset.cell];
    const fits =
      (!status || row.status === status) &&
      chosen.every((select) => `=${row.values[select.dataset.key]}` === select.value) &&
      wanted.every((word) => wordsOf(row).includes(word));
    each.hidden = !fits;
    const details = detailsOf(each);
    if (details) details.hidden = !fits;
    shown += fits;
  }
  document.getElementById("shown").textContent = `${shown} of ${order.length} rows`;
}

const filters = document.getElementById("filters");
document.getElementById("search").addEventListener("input", filter);
filters.addEventListener("change", (event) => {
  if (event.target.id === "baseline") choose(event.target.value);
  else filter();
});
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", (event) => {
  event.preventDefault(); // the baseline is no filter, and stays
  document.getElementById("search").value = "";
  for (const select of filters.querySelectorAll("select:not(#baseline)")) select.value = "";
  filter();
});

function choose(cell) {
  baseline = cell;
  showSpeedups();
  drawSpeedups();
}

// A row's details, made when they are opened.

function detailsOf(line) {
  const next = line.nextElementSibling;
  return next && next.dataset.detailsOf === line.dataset.cell ? next : null;
}

function toggle(line, open) {
  const button = line.querySelector(".open");
  const details = detailsOf(line);
  const wanted = open ?? !details;
  if (wanted && !details) line.after(detailsRow(rows[line.dataset.cell], table.tHead.rows[0].cells.length));
  if (!wanted && details) details.remove();
  button.setAttribute("aria-expanded", String(wanted));
}

function openRow(cell) {
  const line = document.getElementById(`row-${cell}`);
  if (line.hidden) filters.reset();
  toggle(line, true);
  for (const each of order) each.classList.toggle("target", each === line);
  line.scrollIntoView({ block: "center" });
  line.querySelector(".open").focus({ preventScroll: true });
}

function part(title, ...children) {
  return element("div", { class: "part" }, element("h3", {}, title), ...children);
}

function list(texts) {
  return element("ul", {}, ...texts.map((text) => element("li", {}, text)));
}

function copied(title, text, wrapped = false) {
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy: ${title}` }, "Copy");
  button.addEventListener("click", () => copy(button, text));
  const heading = element("div", { class: "heading" }, element("h3", {}, title), button);
  return element("div", { class: "part" }, heading, element("pre", { tabindex: "0", class: wrapped ? "wrapped" : null }, text));
}

function fileLink(path) {
  return element("a", { href: path.split("/").map(encodeURIComponent).join("/") }, path);
}

function detailsRow(row, columns) {
  const inside = element("div", { class: "inside" });
  if (row.reason) {
    const told = part(row.status, element("p", {}, row.reason));
    if (row.instead) told.append(element("p", {}, `instead: ${row.instead}`));
    if (row.log_tail.length) told.append(element("pre", { tabindex: "0" }, row.log_tail.join("\n")));
    told.classList.add("whole");
    inside.append(told);
  }
  if (row.same_as) {
    const first = rows[row.same_as];
    const link = element("a", { href: `#row-${row.same_as}` }, first ? `row ${first.place}` : row.same_as);
    link.addEventListener("click", (event) => { event.preventDefault(); openRow(row.same_as); });
    inside.append(part("The same run", element("p", {}, "Its choices come to the same run as those of ", link, "; it ran once.")));
    inside.lastChild.classList.add("whole");
  }
  const left = element("div", { class: "part" });
  const measured = element("dl", { class: "facts small" });
  for (const [name, text] of row.details) {
    measured.append(element("div", {}, element("dt", {}, name), element("dd", {}, text)));
  }
  if (row.details.length) left.append(element("h3", {}, "Measured"), measured);
  const right = element("div", { class: "part" });
  if (row.images.length) right.append(part("Pictures", shots(row)));
  if (row.applied.length) right.append(part("Applied", list(row.applied)));
  if (row.notices.length) right.append(part("To know", list(row.notices)));
  if (row.choices) left.append(part("Choices", element("p", { class: "small" }, row.choices)));
  for (const [name, path] of [["Report", row.report], ["Log", row.log]]) {
    if (path) left.append(part(name, element("p", { class: "small" }, fileLink(path))));
  }
  for (const column of [left, right]) {
    for (const each of column.querySelectorAll(".part + .part, dl + .part")) each.style.marginTop = "14px";
    if (column.childElementCount) inside.append(column);
  }
  const command = copied("Command that repeats it", row.command, true);
  command.classList.add("whole");
  inside.append(command);
  if (row.recipe) {
    const recipe = copied("Recipe", row.recipe);
    recipe.classList.add("whole");
    inside.append(recipe);
  }
  return element("tr", { class: "details", "data-details-of": row.cell }, element("td", { colspan: columns }, inside));
}

body.addEventListener("click", (event) => {
  const thumb = event.target.closest("[data-pictures]");
  if (thumb) return showPictures(thumb.dataset.pictures);
  const button = event.target.closest(".open");
  if (button) toggle(button.closest("tr"));
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-row]");
  if (link) {
    event.preventDefault();
    openRow(link.dataset.row);
  }
  const button = event.target.closest("[data-copy-command]");
  if (button) copy(button, document.getElementById("command").textContent);
});

// Copying. A page from disk may not be allowed to write the clipboard; then a selection is copied instead.

async function copy(button, text) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copySelection(button, text);
  }
  button.textContent = done ? "Copied" : "Not copied";
  announce(done ? "copied" : "the browser doesn't allow copying; select the text instead");
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
}

function copySelection(button, text) {
  const area = element("textarea", { class: "hidden" });
  area.value = text;
  button.after(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  button.focus();
  return done;
}

// Pictures. They are read from the page when the first of them is wanted.

let pictureData = null;

function picture(key) {
  pictureData ??= JSON.parse(document.getElementById("picture-data").textContent);
  return pictureData[key];
}

function image(key, alt) {
  const found = picture(key);
  const small = Math.max(found.width, found.height) <= 128;
  return element("img", { src: found.uri, alt, class: small ? "small-picture" : null, width: found.width, height: found.height });
}

function shots(row) {
  const made = element("div", { class: "shots" });
  row.images.forEach((each, index) => {
    if (!each.key) {
      made.append(element("p", { class: "small" }, fileLink(each.path), `: ${each.reason}`));
      return;
    }
    const button = element("button", { type: "button", "aria-label": `Picture ${index + 1} beside the reference` }, image(each.key, ""));
    button.addEventListener("click", () => showPictures(row.cell));
    made.append(button);
  });
  return made;
}

const dialog = document.getElementById("pictures");
let pictured = null;

function withPictures() {
  return order.filter((each) => !each.hidden && rows[each.dataset.cell].images.length).map((each) => each.dataset.cell);
}

function showPictures(cell) {
  pictured = cell;
  const row = rows[cell];
  const quality = row.details.find(([name]) => name === "quality");
  document.getElementById("pictures-title").textContent = `${row.place}  ${row.label}`;
  document.getElementById("pictures-told").textContent = quality ? quality[1] : "not compared";
  document.getElementById("pairs").replaceChildren(...row.images.map((each, index) => pair(each, row.reference[index], index)));
  const among = withPictures();
  document.getElementById("previous").disabled = among.indexOf(cell) <= 0;
  document.getElementById("next").disabled = among.indexOf(cell) === among.length - 1;
  if (!dialog.open) dialog.showModal();
}

function figure(title, each) {
  if (!each || !each.key) {
    const told = each ? [fileLink(each.path), `: ${each.reason}`] : ["no reference picture"];
    return element("figure", {}, element("div", { class: "frame empty" }, element("span", {}, ...told)), element("figcaption", {}, title));
  }
  const found = picture(each.key);
  const frame = element("div", { class: "frame", style: `--shape: ${found.width} / ${found.height}` }, image(each.key, title));
  const caption = element("figcaption", {}, title);
  if (found.scaled) caption.append(`; ${found.width} × ${found.height}, shown smaller: `, fileLink(each.path));
  return element("figure", {}, frame, caption);
}

function pair(ours, theirs, index) {
  const number = index ? ` ${index + 1}` : "";
  const made = element("div", { class: "pair" }, figure(`this row${number}`, ours), figure(`reference${number}`, theirs));
  if (!ours.key || !theirs || !theirs.key) return made;
  const [a, b] = [ours, theirs].map((each) => picture(each.key));
  let told = "difference, brightened";
  if (ours.key === theirs.key) told = "no difference: the files are the same";
  else if (a.scaled || b.scaled) told = "difference of the smaller copies; tiny differences may come from compressing them";
  if (a.width !== b.width || a.height !== b.height) {
    made.append(element("figure", {}, element("div", { class: "frame empty" }, "pictures of different sizes"), element("figcaption", {}, "no difference")));
    return made;
  }
  const frame = element("div", { class: "frame difference", style: `--shape: ${a.width} / ${a.height}` }, image(theirs.key, ""), image(ours.key, told));
  made.append(element("figure", {}, frame, element("figcaption", {}, told)));
  return made;
}

function step(by) {
  const among = withPictures();
  const next = among[among.indexOf(pictured) + by];
  if (next) showPictures(next);
}

document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && dialog.open && event.target.id !== "gain") {
    event.preventDefault();
    step(by);
  }
});
dialog.addEventListener("close", () => {
  const thumb = document.querySelector(`[data-pictures="${CSS.escape(pictured)}"]`);
  if (thumb) thumb.focus();
});
document.getElementById("gain").addEventListener("input", (event) => {
  const gain = 2 ** event.target.value;
  dialog.style.setProperty("--gain", gain);
  document.getElementById("gain-told").textContent = gain;
});

function fillThumbs() {
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      const first = rows[target.dataset.pictures].images.find((each) => each.key);
      target.replaceChildren(first ? image(first.key, "") : "…");
    }
  });
  for (const thumb of body.querySelectorAll(".thumb")) seen.observe(thumb);
}

// Charts: plotly's figures with this page's colours. The library is unpacked once the table can be used.

const all = {};

async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function themed(name) {
  const { data, layout } = structuredClone(content.charts[name]);
  const [ink, muted, line, accent, quiet] = ["ink", "muted", "line", "accent", "quiet"].map(colour);
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink };
  layout.hoverlabel = { bgcolor: colour("raised"), bordercolor: line, font: { color: ink, size: 13 }, align: "left" };
  for (const axis of [layout.xaxis, layout.yaxis]) {
    Object.assign(axis, { gridcolor: line, linecolor: line, tickcolor: line });
    axis.tickfont = { color: ink };
    axis.title = { ...axis.title, font: { size: 13, color: muted } };
  }
  for (const shape of layout.shapes || []) shape.line.color = muted;
  for (const annotation of layout.annotations || []) Object.assign(annotation, { bgcolor: colour("paper"), font: { size: 13, color: ink } });
  for (const trace of data) {
    if (trace.type === "bar") {
      trace.marker = { color: trace.customdata.map((cell) => (name === "speedup" && cell === baseline ? quiet : accent)) };
      if (trace.error_x) trace.error_x.color = ink;
    } else {
      const front = trace.meta.role === "front";
      trace.marker = { ...trace.marker, color: front ? accent : quiet };
      if (front) trace.line.color = accent;
      trace.textfont = { size: 12, color: ink };
    }
  }
  return { data, layout };
}

function withRatios(drawn) {
  const [trace] = drawn.data;
  const found = trace.customdata.map((cell) => speedup(rows[cell], rows[baseline]));
  trace.x = found.map((each) => (each ? each.ratio : 0));
  trace.error_x.array = found.map((each) => (each && each.ci95 ? each.ci95[1] - each.ratio : 0));
  trace.error_x.arrayminus = found.map((each) => (each && each.ci95 ? each.ratio - each.ci95[0] : 0));
  drawn.layout.annotations.forEach((annotation, index) => {
    const each = found[index];
    if (!each) return;
    const interval = each.ci95 ? `  ${each.ci95.map((end) => end.toFixed(2)).join(" to ")}` : "";
    annotation.text += `  <b>${each.ratio.toFixed(2)}×</b>${interval}`;
  });
  return drawn;
}

function shorten(trace, layout) {
  const most = content.most_bars;
  for (const key of ["x", "y", "customdata"]) trace[key] = trace[key].slice(0, most);
  trace.marker.color = trace.marker.color.slice(0, most);
  layout.annotations = layout.annotations.filter((each) => each.y < most);
}

function draw(name) {
  if (!content.charts[name]) return Promise.resolve();
  const drawn = name === "speedup" ? withRatios(themed(name)) : themed(name);
  const { data, layout } = drawn;
  const more = document.querySelector(`[data-more="${name}"]`);
  if (more) {
    const count = data[0].customdata.length;
    if (all[name]) {
      layout.height += Math.max(0, count - content.most_bars) * content.bar_px;
      layout.yaxis.range[0] = count - 0.6;
    } else {
      shorten(data[0], layout);
    }
    more.hidden = count <= content.most_bars;
    more.textContent = all[name] ? `Show the first ${content.most_bars}` : `Show all ${count}`;
  }
  return Plotly.react(`chart-${name}`, data, layout, { displayModeBar: false, responsive: true });
}

function drawSpeedups() {
  if (window.Plotly) draw("speedup");
}

async function drawAll() {
  for (const name of ["speedup", "memory", "quality"]) await draw(name);
}

for (const button of document.querySelectorAll("[data-more]")) {
  button.addEventListener("click", () => {
    all[button.dataset.more] = !all[button.dataset.more];
    draw(button.dataset.more);
  });
}

async function startCharts() {
  fillThumbs();
  await loadPlotly();
  await drawAll();
  for (const chart of document.querySelectorAll(".chart")) {
    chart.on("plotly_click", (event) => openRow(event.points[0].customdata));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  performance.mark("charts");
  document.documentElement.dataset.ready = "charts";
}

showSpeedups();
performance.mark("table");
document.documentElement.dataset.ready = "table";
requestAnimationFrame(() => setTimeout(startCharts));
