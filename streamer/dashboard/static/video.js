// The page of one video: its scores over time, by track and by model, and its updates.

import {
  byId,
  colours,
  countText,
  durationText,
  element,
  follow,
  intervalText,
  numberText,
  onThemeChange,
  positionText,
  printable,
  scoreText,
  setText,
  stateOf,
  timeText,
  tintOf,
  WITHHELD,
} from "./common.js";
import uPlot from "./vendor/uPlot.esm.js";

const MAX_UPDATES = 240; // as many as the server keeps
const MAX_LISTED = 100;
const NOT_PUBLISHED = "not published";

const id = new URLSearchParams(location.search).get("id") ?? "";
const name = printable(id);
setText(byId("name"), name);
document.title = `${name} · streamer`;

let updates = [];
let latest = null;
let wasAlert = null;

const stream = follow(`events/video?id=${encodeURIComponent(id)}`, (change) => {
  byId("unknown").hidden = change.video !== null;
  byId("content").hidden = change.video === null;
  if (change.reset) updates = [];
  updates = updates.concat(change.updates).slice(-MAX_UPDATES);
  latest = change.video === null ? null : change;
  if (latest) {
    if (wasAlert === false && latest.video.alert) setText(byId("announcement"), `Alert raised: ${name}`);
    wasAlert = latest.video.alert;
    show();
  }
});

const show = () => {
  byId("untrained").hidden = latest.video.trained;
  showTiles();
  showCharts();
  showFaces();
  showLatest();
  showUpdates();
};

// ---------------------------------------------------------------- figures

const showTiles = () => {
  const video = latest.video;
  const state = stateOf(video, stream.now());
  const tiles = [
    ["state", state, video.alert ? "alert" : ""],
    ["now", video.trained ? scoreText(video.score) : WITHHELD, ""],
    ["overall", video.trained ? scoreText(video.overall) : WITHHELD, ""],
    ["95 % interval", intervalText(video.interval), ""],
    ["faces", numberText(video.faces), ""],
    ["tracks", numberText(video.tracks), ""],
    ["at", positionText(video.at), ""],
    ["latency", durationText(video.latency), ""],
    ["lag", durationText(video.lag), ""],
    ["chunks", numberText(video.chunks), ""],
    ["missing", numberText(video.missing), ""],
    ["undecodable", numberText(video.undecodable), ""],
  ];
  if (video.unscored) {
    tiles.push(["faces not scored", numberText(video.unscored), ""]);
  }
  if (latest.shadow) {
    const { trained, score, overall } = latest.shadow;
    tiles.push(["shadow now", trained ? scoreText(score) : WITHHELD, ""]);
    tiles.push(["shadow overall", trained ? scoreText(overall) : WITHHELD, ""]);
  }
  const shown = byId("tiles");
  if (shown.children.length !== tiles.length) {
    shown.replaceChildren(
      ...tiles.map(([title]) => element("div", {}, element("dt", {}, title), element("dd"))),
    );
  }
  tiles.forEach(([, value, kind], index) => {
    const tile = shown.children[index];
    tile.className = kind;
    setText(tile.lastChild, value);
  });
};

const showLatest = () => {
  const fields = [];
  const { latency_ms: latency, alert, ...plain } = latest.latest;
  for (const [key, value] of Object.entries(plain)) fields.push([key, plainText(key, value)]);
  if (alert) {
    fields.push(["alert.state", alert.state], ["alert.since_seq", plainText("", alert.since_seq)]);
    fields.push(["alert.threshold", String(alert.threshold)]);
  }
  if (latest.shadow) {
    const { model_set: modelSet, trained, faces } = latest.shadow;
    fields.push(["shadow.model_set", modelSet], ["shadow.trained", String(trained)]);
    fields.push(["shadow.faces", String(faces)]);
  }
  for (const [stage, ms] of Object.entries(latency)) fields.push([`latency ${stage}`, durationText(ms)]);
  const shown = byId("latest");
  const texts = fields.map(([key, value]) => [printable(key), printable(value)]);
  if (shown.children.length !== texts.length) {
    shown.replaceChildren(...texts.map(() => element("div", {}, element("dt"), element("dd"))));
  }
  texts.forEach(([key, value], index) => {
    setText(shown.children[index].firstChild, key);
    setText(shown.children[index].lastChild, value);
  });
};

const plainText = (key, value) => {
  if (value === null || value === undefined) return "–";
  if (key.endsWith("_ms")) return timeText(value);
  if (key.endsWith("_score")) return value.toFixed(3);
  return Array.isArray(value) ? value.map((item) => item.toFixed(3)).join(" – ") : String(value);
};

const showUpdates = () => {
  const rows = updates
    .slice(-MAX_LISTED)
    .toReversed()
    .map((update) => {
      const changed = update.alert ? "▲ raised" : "△ cleared";
      const cells = [
        ["", timeText(update.seen)],
        ["number", numberText(update.seq)],
        ["", update.end === null ? "–" : positionText(update.end / 1000)],
        ["", update.error ? `${update.status}: ${printable(update.error)}` : update.status.replace("_", " ")],
        ["number", scoreText(update.score)],
        ["number", scoreText(update.overall)],
        ["", intervalText(update.interval)],
        ["number", numberText(update.faces)],
        ["number", durationText(update.latency)],
        ["", update.alert_changed ? changed : update.alert ? "▲" : ""],
      ];
      const row = element("tr", {}, ...cells.map(([kind, text]) => element("td", { class: kind }, text)));
      row.children[4].dataset.tint = tintOf(update.score, latest.video.threshold);
      return row;
    });
  byId("updates").replaceChildren(...rows);
};

// ---------------------------------------------------------------- faces

const heatButton = byId("heat");
heatButton.addEventListener("click", () => {
  const on = heatButton.getAttribute("aria-pressed") !== "true";
  heatButton.setAttribute("aria-pressed", on);
  setText(heatButton, on ? "Hide heat maps" : "Show heat maps");
  byId("faces").classList.toggle("heated", on);
});

const faces = new Map(); // key -> item of the list

const showFaces = () => {
  const shown = latest.evidence;
  byId("no-faces").hidden = shown.length > 0;
  byId("some-faces").hidden = shown.length === 0;
  heatButton.disabled = !shown.some((face) => face.heat);
  const wanted = new Set(shown.map((face) => face.key));
  for (const key of faces.keys()) if (!wanted.has(key)) faces.delete(key);
  for (const face of shown) if (!faces.has(face.key)) faces.set(face.key, faceItem(face));
  const items = shown.map((face) => faces.get(face.key));
  const list = byId("faces");
  // put in place anew only when something changed: the pictures are not loaded again
  if (items.length !== list.children.length || items.some((item, index) => item !== list.children[index])) {
    list.replaceChildren(...items);
  }
};

const faceItem = (face) => {
  const who = `track ${face.track} at ${positionText(face.at)}`;
  const picture = (kind, alt) =>
    element("img", { src: `evidence/${face.key}/${kind}`, alt, class: kind, width: 144, height: 144 });
  const stack = element("span", { class: "stack" }, picture("crop", `Face of ${who}`));
  if (face.heat) stack.append(picture("heat", `Heat map of the face of ${who}`));
  const score = element("b", {}, scoreText(face.score));
  score.dataset.tint = tintOf(face.score, latest.video.threshold);
  const models = face.models.map(([model, value]) =>
    element("li", {}, element("span", {}, printable(model)), ` ${scoreText(value)}`),
  );
  return element("li", {}, stack, element("p", {}, score, ` ${who}`), element("ul", {}, ...models));
};

// ---------------------------------------------------------------- charts

const charts = new Map(); // place -> {key, plot}

const showCharts = () => {
  const placed = new Map();
  for (const update of updates) if (update.end !== null) placed.set(update.end, update);
  const inOrder = [...placed.values()].sort((a, b) => a.end - b.end);
  const x = inOrder.map((update) => update.end / 1000);
  const palette = colours();
  const { trained, threshold } = latest.video;

  const bound = (index) => inOrder.map((update) => (update.interval ? update.interval[index] : null));
  chart("timeline", trained ? "scores" : null, x, [
    { label: "low", values: bound(0), colour: "transparent" },
    { label: "high", values: bound(1), colour: "transparent" },
    { label: "overall", values: inOrder.map((update) => update.overall), colour: palette.dim },
    { label: "now", values: inOrder.map((update) => update.score), colour: palette.low },
    { label: "threshold", values: x.map(() => threshold), colour: palette.high, dash: [4, 4] },
    ...(latest.shadow?.trained
      ? [{ label: "shadow now", values: inOrder.map((update) => update.shadow), colour: palette.series[1], dash: [2, 3] }]
      : []),
  ]);

  for (const [place, list, field, current, say] of [
    ["tracks", "track-list", "tracks", latest.tracks, (track) => `track ${track.track}`],
    ["models", "model-list", "models", latest.models, (model) => printable(model.name)],
  ]) {
    const keyOf = (item) => (field === "tracks" ? item.track : item.name);
    const series = current.map((item, index) => ({
      label: say(item),
      values: inOrder.map((update) => update[field].find(([key]) => key === keyOf(item))?.[1] ?? null),
      colour: palette.series[index % palette.series.length],
    }));
    chart(place, current.length && trained ? place : null, x, series);
    byId(list).replaceChildren(
      ...current.map((item, index) => {
        const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
        swatch.style.background = palette.series[index % palette.series.length];
        const faces = item.faces === undefined ? "" : `, ${countText(item.faces, "face")}`;
        const box = item.box ? ` at ${item.box.map((edge) => Math.round(edge)).join(", ")} px` : "";
        const score = trained ? scoreText(item.score) : WITHHELD;
        const now = trained && item.now !== undefined ? `${scoreText(item.now)} now, ` : "";
        return element("li", {}, swatch, `${say(item)}: ${now}`, element("b", {}, score), faces, box);
      }),
    );
  }
};

const chart = (place, kind, x, series) => {
  const holder = byId(place);
  const enough = kind !== null && x.length > 0;
  if (!enough) {
    charts.get(place)?.plot.destroy();
    charts.delete(place);
    const why = latest.video.trained ? NOT_PUBLISHED : `withheld (${WITHHELD})`;
    holder.replaceChildren(element("p", { class: "dim" }, why));
    return;
  }
  const key = JSON.stringify([kind, series.map(({ label, colour }) => [label, colour]), holder.clientWidth]);
  const data = [x, ...series.map(({ values }) => values)];
  const known = charts.get(place);
  if (known?.key === key) {
    known.plot.setData(data);
    return;
  }
  known?.plot.destroy();
  holder.replaceChildren();
  const palette = colours();
  const axis = { stroke: palette.dim, grid: { stroke: palette.grid, width: 1 }, ticks: { show: false } };
  const options = {
    width: holder.clientWidth,
    height: kind === "scores" ? 260 : 200,
    scales: { x: { time: false }, y: { range: [0, 1] } },
    axes: [
      { ...axis, size: 28, values: (_, ticks) => ticks.map(positionText), space: 70 },
      { ...axis, size: 42, splits: () => [0, 0.2, 0.4, 0.6, 0.8, 1], values: (_, ticks) => ticks.map((tick) => tick.toFixed(1)) },
    ],
    legend: { show: kind === "scores" },
    cursor: { drag: { x: false, y: false }, points: { size: 6 } },
    bands: kind === "scores" ? [{ series: [2, 1], fill: palette.lowFill }] : [],
    series: [
      { label: "at", value: (_, value) => positionText(value) },
      ...series.map(({ label, colour, dash }) => ({
        label,
        stroke: colour,
        dash,
        width: label === "overall" ? 1 : 1.6,
        points: { show: x.length < 2 },
        spanGaps: false,
        value: (_, value) => scoreText(value),
      })),
    ],
  };
  charts.set(place, { key, plot: new uPlot(options, data, holder) });
};

const redraw = () => latest && showCharts();
onThemeChange(redraw);
new ResizeObserver(redraw).observe(byId("content"));
setInterval(() => latest && showTiles(), 1000); // silence grows without a change
