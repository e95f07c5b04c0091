"use strict";
// Shows collections. Values of records become text nodes only: a payload may hold markup.

const frozen = document.getElementById("data");
const state = { collections: [], name: null, charts: [] };

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const format = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const count = (value) => (value === null || value === undefined ? "none" : format.format(value));
const digits = (value, places = 4) => (typeof value === "number" ? Number(value.toPrecision(places)).toString() : "none");
const own = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
}

function say(text) { document.getElementById("message").textContent = text; }

async function ask(path, body) {
  const headers = body ? { "content-type": "application/json" } : {};
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const reason = found.status && found.status.error ? found.status.error : `the server answers ${answer.status}`;
  throw new Error(reason);
}

function table(caption, headers, rows) {
  const cell = (tag, value, header, extra = {}) => {
    const kind = header.kind ? { class: header.kind } : {};
    return element(tag, { ...kind, ...extra }, value instanceof Node ? value : document.createTextNode(value));
  };
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", {}, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, headers.map((one) => cell("th", one.name, one, { scope: "col" })))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((value, at) => cell("td", value, headers[at])))))));
}

function facts(pairs) {
  return element("dl", {}, pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function part(title, ...children) { return element("section", {}, element("h2", {}, title), ...children); }

function overview(one) {
  const taken = one.bytes.codes + one.bytes.tables + one.bytes.codec + one.bytes.database;
  const saved = one.bytes.exact - taken;
  return part("Overview",
    facts([
      ["Records", count(one.records)], ["Vectors", count(one.vectors)], ["Compressed", count(one.compressed)],
      ["Kept exactly", count(one.fresh)], ["Dimension", count(one.dim)], ["Metric", one.metric],
      ["Bytes a vector", one.bytes_per_vector ? one.bytes_per_vector.toFixed(2) : "none yet"],
      ["Saved", saved > 0 ? `${size(saved)} (${(one.bytes.exact / taken).toFixed(1)}×)` : "nothing yet"],
    ]),
    ...one.warnings.map((text) => element("p", { class: "warning" }, text)));
}

function bytesPart(one) {
  const kinds = [["Codes", one.bytes.codes], ["Tables of the index", one.bytes.tables], ["Codec", one.bytes.codec],
    ["Database: ids, payloads, exact vectors", one.bytes.database], ["The vectors as float32", one.bytes.exact]];
  const most = Math.max(1, ...kinds.map(([, bytes]) => bytes));
  const rows = kinds.map(([name, bytes]) => [name, size(bytes),
    element("meter", { min: 0, max: most, value: bytes, "aria-label": `${name}: ${size(bytes)}` })]);
  return part("Bytes", table("Bytes by kind", [{ name: "Kind" }, { name: "Size", kind: "number" }, { name: "Share" }], rows));
}

// A chart of bars or lines over bins, with a table of the same numbers for those who do not see it.
function chart(label, axis, edges, series, isLog) {
  const figure = element("figure", { role: "img", "aria-label": label });
  const draw = () => {
    figure.replaceChildren();
    const stroke = own("--quiet"), grid = { stroke: own("--line") };
    const hues = [own("--bar"), "#c2703d", "#3f9c6b", "#a45bb5", "#b09a2d", "#4aa3a8", "#c05070", "#7d7f8a"];
    const width = Math.max(220, figure.clientWidth || 320);
    const lines = series.map((one, at) => ({ label: one.name, stroke: hues[at % hues.length], width: 2,
      fill: series.length === 1 ? hues[0] + "55" : undefined, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } }));
    const options = { width, height: 220, cursor: { show: false }, legend: { show: series.length > 1, live: false },
      scales: { x: { time: false, distr: isLog ? 3 : 1 } }, series: [{ label: axis }, ...lines],
      axes: [{ stroke, grid, label: axis, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : digits(tick, 3))) },
        { stroke, grid, size: 60 }] };
    new uPlot(options, [edges, ...series.map((one) => one.values)], figure);
  };
  state.charts.push(draw);
  const rows = edges.map((edge, at) => [digits(edge), ...series.map((one) => digits(one.values[at]))]);
  const headers = [{ name: axis, kind: "number" }, ...series.map((one) => ({ name: one.name, kind: "number" }))];
  return [figure, element("details", {}, element("summary", {}, "The numbers"), table(label, headers, rows))];
}

function errorsPart(one) {
  const { edges, segments } = one.error_histogram;
  if (!one.segments.length) return part("Error", element("p", {}, "No vector is compressed yet, so all are exact."));
  const used = edges.map((_, at) => segments.some((segment) => segment.shares[at] > 0));
  const first = Math.max(1, used.indexOf(true) - 1), last = Math.min(edges.length, used.lastIndexOf(true) + 2);
  const names = Object.fromEntries(one.segments.map((segment, at) => [segment.token, `segment ${at + 1}`]));
  const series = segments.map((segment) => ({ name: names[segment.token], values: segment.shares.slice(first, last) }));
  const drift = one.drift ? `The newest segment loses ${digits(one.drift, 3)} times what the first vectors lost.`
    : "There are too few new vectors to tell whether they have drifted.";
  const rows = one.segments.map((segment) => [names[segment.token], count(segment.vectors), count(segment.deleted),
    size(segment.bytes), digits(segment.error, 3), digits(segment.drift, 3)]);
  const headers = ["Segment", "Vectors", "Deleted", "Size", "Error", "Drift"].map((name, at) => ({ name, kind: at ? "number" : null }));
  return part("Error",
    element("p", { class: "hint" }, "Squared error of vectors relative to their squared length. ", drift),
    ...(series.length ? chart("Share of vectors by error", "relative squared error", edges.slice(first, last), series, true) : []),
    table("Segments", headers, rows));
}

function listsPart(one) {
  if (!one.list_size) return part("Inverted lists", element("p", {}, "There are none before vectors are compressed."));
  return part("Inverted lists",
    element("p", { class: "hint" }, "How many lists hold how many vectors. A search reads the lists nearest to the query."),
    ...chart("Number of lists by their vectors", "vectors in a list", one.list_size.edges,
      [{ name: "lists", values: one.list_size.lists }], false));
}

function recallPart(one) {
  const found = one.recall;
  if (!found) return part("Recall and time", element("p", {}, "Not measured: Collection.evaluate(source, keep=True) does."));
  const time = (value) => (typeof value === "number" ? `${digits(value, 3)} µs` : "not measured");
  const latency = found.latency || {}, of = found.latency ? ` of ${count(latency.batch)}` : "";
  const since = found.is_current ? "" : " Vectors have changed since.";
  const hint = `Beside an exact search over the original vectors, measured last${found.measured_at ? ` at ${found.measured_at}` : ""}.${since}`;
  const shown = [[`Recall@${found.k}`, digits(found.recall, 3)], ["Queries", count(found.num_queries)],
    ["Vectors then", count(found.num_vectors)], ["A query alone takes", time(latency.microseconds)],
    [`A query in a batch${of} takes`, time(latency.batch_microseconds)]];
  if (found.latency) shown.push(["Threads", count(latency.threads)], ["Machine", latency.machine]);
  return part("Recall and time", element("p", { class: "hint" }, hint), facts(shown));
}

const payloadText = (payload) => (typeof payload === "string" ? payload : payload ? JSON.stringify(payload) : "");

function hitsTable(caption, hits) {
  const headers = [{ name: "Rank", kind: "number" }, { name: "Id" }, { name: "Score", kind: "number" },
    { name: "Rank among all", kind: "number" }, { name: "Payload", kind: "payload" }];
  return table(caption, headers, hits.map((hit, at) => [String(at + 1), String(hit.id), digits(hit.score), hit.exact_rank === null
    ? "beyond" : String(hit.exact_rank), payloadText(hit.payload)]));
}

function examplesPart(one) {
  const place = element("div", { "aria-live": "polite" });
  const choose = element("select", { onchange: () => show(Number(choose.value)) },
    one.examples.map((example, at) => element("option", { value: at }, String(example.id))));
  const show = (at) => {
    const example = one.examples[at];
    place.replaceChildren(element("p", { class: "hint" }, payloadText(example.payload)), hitsTable(`Records nearest to ${example.id}`, example.hits));
  };
  if (!one.examples.length) return part("Neighbours", element("p", {}, "There is no record yet."));
  show(0);
  return part("Neighbours", element("form", {}, element("label", {}, "Record", choose)), place);
}

function searchPart(one) {
  const place = element("div", { "aria-live": "polite" });
  const id = element("input", { name: "id", autocomplete: "off", spellcheck: "false" });
  const where = element("input", { name: "where", placeholder: '{"year": {"gte": 2010}}', autocomplete: "off", spellcheck: "false" });
  const k = element("input", { name: "k", type: "number", min: 1, max: 100, value: 10 });
  let newest = 0; // an answer to an older question is not shown
  const run = async (event, wanted) => {
    event.preventDefault();
    const own = ++newest;
    try {
      const filter = where.value.trim() ? JSON.parse(where.value) : null;
      const body = { collection: one.name, id: wanted === undefined ? id.value : wanted, where: filter, k: Number(k.value) || 10 };
      const found = await ask("/page/neighbours", body);
      if (own !== newest) return;
      id.value = JSON.stringify(found.id);
      place.replaceChildren(element("p", { class: "hint" }, payloadText(found.payload)),
        hitsTable(`Records nearest to ${found.id}`, found.hits));
    } catch (error) {
      if (own !== newest) return;
      const text = error instanceof SyntaxError ? "The filter is no JSON object." : error.message;
      place.replaceChildren(element("p", { class: "warning", role: "alert" }, text));
    }
  };
  return part("Search",
    element("form", { onsubmit: (event) => run(event) }, element("label", {}, "Id of a record", id),
      element("label", { class: "wide" }, "Filter", where), element("label", { class: "narrow" }, "Records", k),
      element("button", { type: "submit" }, "Search"),
      element("button", { type: "button", class: "second", onclick: (event) => run(event, null) }, "Random record")),
    element("p", { class: "hint" }, "Scores are of compressed vectors; the last rank is that among all of them."), place);
}

function show() {
  state.charts = [];
  const names = document.getElementById("names"), content = document.getElementById("content");
  names.replaceChildren(...(state.collections.length > 1 ? state.collections : []).map((one) => element("a",
    { href: `#${encodeURIComponent(one.name)}`, "aria-current": one.name === state.name ? "page" : null }, one.name)));
  const one = state.collections.find((each) => each.name === state.name);
  document.getElementById("title").textContent = one ? one.name : "Collections";
  document.title = one ? `${one.name} – qinco` : "qinco";
  content.replaceChildren();
  if (!one) return say("There is no collection yet.");
  say("");
  content.append(overview(one), frozen ? examplesPart(one) : searchPart(one),
    element("div", { class: "pair" }, errorsPart(one), listsPart(one)),
    element("div", { class: "pair" }, bytesPart(one), recallPart(one)));
  state.charts.forEach((draw) => draw());
}

function choose() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const found = state.collections.find((one) => one.name === wanted) || state.collections[0];
  state.name = found ? found.name : null;
  show();
}

async function load() {
  try {
    const found = frozen ? JSON.parse(frozen.textContent) : await ask("/page/data");
    state.collections = found.collections;
    choose();
  } catch (error) {
    say(error.message);
  }
}

window.addEventListener("hashchange", choose);
let waiting = 0;
const redraw = () => { clearTimeout(waiting); waiting = setTimeout(() => state.charts.forEach((draw) => draw()), 150); };
window.addEventListener("resize", redraw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("DOMContentLoaded", load);
