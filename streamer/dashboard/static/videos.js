// The page of all videos: a virtual table, of which only the rows in view exist.

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
  tintOf,
  videoAddress,
  WITHHELD,
} from "./common.js";
import { held, sorted } from "./order.js";
import { drawTrend, TREND_UPDATES } from "./trend.js";

const OVERSCAN = 6;
const HOLD_MS = 15000; // a pointer left on the table must not stop it for ever
const ANNOUNCE_MS = 1000;
const MAX_PINS = 200;

const videos = new Map();
const view = { order: "important", shown: "all", text: "", pins: loadPins() };
let ordered = [];
let palette = colours();
let paletteNumber = 0;
let holdUntil = 0;
let status = null;

const scroller = byId("scroller");
const body = byId("videos");
const table = byId("table");
const above = spacer();
const below = spacer();
body.append(above, below);

// ---------------------------------------------------------------- changes

const stream = follow("events", (change) => {
  if (change.reset) videos.clear();
  for (const id of change.gone) videos.delete(id); // first: some may have come back
  const raised = [];
  for (const fresh of change.videos) {
    const known = videos.get(fresh.id);
    const video = known ?? { trend: [] };
    if (fresh.alert && !video.alert && !change.reset) raised.push(fresh.id);
    video.trend = video.trend.concat(fresh.points).slice(-TREND_UPDATES);
    Object.assign(video, fresh, { points: null, touched: (video.touched ?? 0) + 1 });
    if (!known) videos.set(fresh.id, video);
  }
  status = change.status;
  announce(raised);
  measureRate();
  arrange();
}, { hidden: true }); // its title counts the alerts

const arrange = ({ forced = false } = {}) => {
  const wanted = sorted([...videos.values()], view);
  const hold = !forced && Date.now() < holdUntil;
  ordered = hold ? held(ordered, wanted) : wanted;
  byId("held").hidden = !hold || ordered.every((video, index) => video === wanted[index]);
  summarise();
  schedule();
};

let scheduled = false;
const schedule = () => {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    render();
  });
};

// ---------------------------------------------------------------- rows

function spacer() {
  return element("tr", { "aria-hidden": "true", class: "spacer" }, element("td"));
}

const drawn = new Map(); // id -> row in the document
const spare = [];

const CELLS = ["now", "trend", "overall", "interval", "faces", "tracks", "at", "latency", "lag", "state"];

const makeRow = () => {
  const pin = element("button", { class: "pin", type: "button" }, "☆");
  const link = element("a", { class: "video" });
  const heading = element("th", { scope: "row" }, pin, link);
  const row = element("tr", {}, heading);
  const cells = { pin, link };
  for (const name of CELLS) {
    cells[name] = element("td", { class: name });
    row.append(cells[name]);
  }
  cells.canvas = element("canvas", { "aria-hidden": "true" });
  cells.trend.append(cells.canvas);
  row.cells_ = cells;
  return row;
};

const fill = (row, video, index, now) => {
  const cells = row.cells_;
  row.setAttribute("aria-rowindex", index + 2);
  const pinned = view.pins.has(video.id);
  if (row.video !== video || row.pinned !== pinned) {
    const name = printable(video.id);
    setText(cells.link, name);
    cells.link.href = videoAddress(video.id);
    cells.link.title = name;
    setText(cells.pin, pinned ? "★" : "☆");
    cells.pin.setAttribute("aria-pressed", pinned);
    cells.pin.setAttribute("aria-label", `Pin ${name}`);
    row.touched = -1;
  }
  row.video = video;
  row.pinned = pinned;
  const state = stateOf(video, now);
  setText(cells.state, state);
  if (row.touched === video.touched && row.paletteNumber === paletteNumber) return;
  row.touched = video.touched;
  row.paletteNumber = paletteNumber;
  row.classList.toggle("alert", video.alert);
  row.classList.toggle("ended", video.last && !video.alert);
  setText(cells.now, video.trained ? scoreText(video.score) : WITHHELD);
  cells.now.dataset.tint = video.trained ? tintOf(video.score, video.threshold) : "none";
  setText(cells.overall, video.trained ? scoreText(video.overall) : "–");
  setText(cells.interval, intervalText(video.interval));
  setText(cells.faces, numberText(video.faces));
  setText(cells.tracks, numberText(video.tracks));
  setText(cells.at, positionText(video.at));
  setText(cells.latency, durationText(video.latency));
  setText(cells.lag, durationText(video.lag));
  drawTrend(cells.canvas, trendWidth, video.trend, video.threshold, palette);
};

let trendWidth = 0; // of all sparklines; measured once, since asking for it costs a layout
const rowHeight = () => parseFloat(getComputedStyle(table).getPropertyValue("--row")) || 40;
let height = rowHeight();

const render = () => {
  const now = stream.now();
  const headHeight = table.tHead.offsetHeight;
  const first = Math.max(0, Math.floor((scroller.scrollTop - headHeight) / height) - OVERSCAN);
  const count = Math.ceil(scroller.clientHeight / height) + 2 * OVERSCAN;
  const from = Math.max(0, Math.min(first, ordered.length - count));
  const visible = ordered.slice(from, from + count);
  table.setAttribute("aria-rowcount", ordered.length + 1);
  above.firstChild.style.height = `${from * height}px`;
  below.firstChild.style.height = `${Math.max(0, ordered.length - from - visible.length) * height}px`;

  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  const ids = new Set(visible.map((video) => video.id));
  const stays = focused && ids.has(focused.closest("tr").video.id); // else its row may serve another video
  for (const [id, row] of drawn) {
    if (ids.has(id)) continue;
    row.remove();
    drawn.delete(id);
    spare.push(row);
  }
  let place = above.nextSibling;
  for (const video of visible) {
    let row = drawn.get(video.id);
    if (!row) {
      row = spare.pop() ?? makeRow();
      drawn.set(video.id, row);
    }
    if (row === place) place = place.nextSibling;
    else body.insertBefore(row, place);
  }
  // Only now, with the table at its full height: a layout before would let the browser correct the scrolling.
  trendWidth ||= drawn.get(visible[0]?.id)?.cells_.canvas.clientWidth ?? 0;
  visible.forEach((video, offset) => fill(drawn.get(video.id), video, from + offset, now));
  if (focused && (!stays || focused !== document.activeElement)) {
    // its row was moved, or has left: then the table keeps the focus
    (stays ? focused : scroller).focus({ preventScroll: true });
  }
  byId("nothing").hidden = ordered.length > 0;
};

// ---------------------------------------------------------------- counts, alerts

let rate = null;
const counted = [];
const measureRate = () => {
  counted.push([performance.now(), status.updates]);
  while (counted.length > 2 && counted.at(-1)[0] - counted[0][0] > 5000) counted.shift();
  const [from, to] = [counted[0], counted.at(-1)];
  if (to[0] - from[0] > 900) rate = (1000 * Math.max(0, to[1] - from[1])) / (to[0] - from[0]);
};

const summarise = () => {
  if (!status) return;
  let [alerts, live, untrained] = [0, 0, 0];
  for (const video of videos.values()) {
    alerts += video.alert;
    live += !video.last;
    untrained += !video.trained;
  }
  setText(byId("alerts"), numberText(alerts));
  byId("alerts-tile").classList.toggle("alert", alerts > 0);
  setText(byId("live"), numberText(live));
  setText(byId("known"), numberText(videos.size));
  setText(byId("rate"), rate === null ? "–" : rate < 10 ? rate.toFixed(1) : numberText(Math.round(rate)));
  setText(byId("behind"), numberText(status.behind));
  setText(byId("unreadable"), numberText(status.unreadable));
  setText(byId("letters"), numberText(status.letters));
  byId("trouble").hidden = status.trouble.length === 0;
  setText(byId("trouble"), status.trouble.map(printable).join(" · "));
  byId("untrained").hidden = untrained === 0;
  byId("forgotten").hidden = status.forgotten === 0;
  setText(
    byId("forgotten"),
    `${countText(status.forgotten, "video")} silent longest had to go for newer ones.`,
  );
  const shown = ordered.length === videos.size ? "" : `${numberText(ordered.length)} shown`;
  setText(byId("shown"), shown);
  document.title = alerts ? `▲ ${numberText(alerts)} · streamer` : "streamer";
};

let raisedSince = [];
const announce = (raised) => {
  if (raised.length && !raisedSince.length) {
    setTimeout(() => {
      const [first, ...others] = raisedSince;
      const more = others.length ? ` and ${countText(others.length, "other video")}` : "";
      byId("announcement").textContent = `Alert raised: ${printable(first)}${more}`;
      raisedSince = [];
    }, ANNOUNCE_MS);
  }
  raisedSince.push(...raised);
};

// ---------------------------------------------------------------- people

const hold = () => {
  holdUntil = Date.now() + HOLD_MS;
};
const letGo = () => {
  holdUntil = 0;
  arrange();
};
body.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hold());
body.addEventListener("pointerleave", () => {
  if (!body.contains(document.activeElement)) letGo();
});
body.addEventListener("focusin", hold);
body.addEventListener("focusout", (event) => {
  if (!body.contains(event.relatedTarget)) letGo();
});
byId("sort-now").addEventListener("click", letGo);

body.addEventListener("click", (event) => {
  const pin = event.target.closest(".pin");
  if (pin) togglePin(pin.closest("tr").video.id);
});

function loadPins() {
  try {
    return new Set(JSON.parse(localStorage.getItem("pins") ?? "[]").slice(0, MAX_PINS));
  } catch {
    return new Set();
  }
}

const togglePin = (id) => {
  if (!view.pins.delete(id) && view.pins.size < MAX_PINS) view.pins.add(id);
  try {
    localStorage.setItem("pins", JSON.stringify([...view.pins]));
  } catch {
    // storage is switched off: pins hold for this page
  }
  arrange();
};

const choose = (changes) => {
  Object.assign(view, changes);
  byId("order").value = view.order;
  for (const heading of table.tHead.querySelectorAll("th[data-order]")) {
    const chosen = heading.dataset.order === view.order;
    if (chosen) heading.setAttribute("aria-sort", view.order === "video" ? "ascending" : "descending");
    else heading.removeAttribute("aria-sort");
  }
  scroller.scrollTop = 0;
  arrange({ forced: true });
};
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("filter").addEventListener("input", (event) => choose({ text: event.target.value }));
byId("show").addEventListener("change", (event) => choose({ shown: event.target.value }));
byId("order").addEventListener("change", (event) => choose({ order: event.target.value }));
table.tHead.addEventListener("click", (event) => {
  const order = event.target.closest("button")?.closest("th").dataset.order;
  if (order) choose({ order: view.order === order ? "important" : order });
});

const focusRow = (index) => {
  const at = Math.max(0, Math.min(ordered.length - 1, index));
  const headHeight = table.tHead.offsetHeight;
  const [top, room] = [at * height, scroller.clientHeight - headHeight];
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  if (top + height > scroller.scrollTop + room) scroller.scrollTop = top + height - room;
  render();
  drawn.get(ordered[at]?.id)?.cells_.link.focus({ preventScroll: true });
};

scroller.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const row = event.target.closest?.("#videos tr");
  const at = row?.video ? ordered.indexOf(row.video) : -1;
  const page = Math.max(1, Math.floor(scroller.clientHeight / height) - 2);
  const moves = {
    ArrowDown: at + 1,
    ArrowUp: at - 1,
    PageDown: at + page,
    PageUp: at - page,
    Home: 0,
    End: ordered.length - 1,
  };
  hold();
  if (event.key in moves) {
    event.preventDefault();
    focusRow(moves[event.key]);
  } else if (event.key === "p" && at >= 0) {
    togglePin(row.video.id);
  }
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId("filter").focus();
  } else if (event.key === "Escape") {
    if (event.target === byId("filter") && byId("filter").value) {
      byId("filter").value = "";
      choose({ text: "" });
    } else {
      letGo();
    }
  }
});

scroller.addEventListener("scroll", schedule, { passive: true });
const repaint = () => {
  palette = colours();
  paletteNumber += 1;
  height = rowHeight();
  trendWidth = 0;
  schedule();
};
onThemeChange(repaint);
new ResizeObserver(repaint).observe(scroller);
setInterval(arrange, 1000); // silence grows, and holds end, without a change
