// What the pages share. Texts from messages reach the document as text nodes only.

export const WITHHELD = "untrained";

export const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

export const byId = (id) => document.getElementById(id);

export const setText = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

// Control and format characters, such as those that turn the direction of writing, are shown as escapes.
export const printable = (text) =>
  text === ""
    ? "(empty)"
    : text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

export const videoAddress = (id) => `video?id=${encodeURIComponent(id)}`;

export const scoreText = (score) => (score === null || score === undefined ? "–" : score.toFixed(2));

export const intervalText = (interval) =>
  interval ? `${interval[0].toFixed(2)}–${interval[1].toFixed(2)}` : "–";

export const numberText = (number) => number.toLocaleString("en");

export const countText = (number, noun, plural = `${noun}s`) =>
  `${numberText(number)} ${number === 1 ? noun : plural}`;

export const durationText = (ms) => {
  if (ms === null || ms === undefined) return "–";
  const seconds = ms / 1000;
  if (seconds < 0) return `−${durationText(-ms)}`;
  if (seconds < 1) return `${Math.round(ms)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${numberText(Math.round(seconds / 86400))} d`;
};

const UNIX_SECONDS = 1e8; // a position so late is the time of day, as in terminal.py

export const positionText = (seconds) => {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds >= UNIX_SECONDS) return timeText(1000 * seconds);
  const two = (number) => String(number).padStart(2, "0");
  const whole = Math.floor(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${numberText(hours)}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
};

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayAndClock = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const timeText = (ms) => {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return String(ms);
  return Math.abs(Date.now() - ms) < 43200000 ? clock.format(date) : dayAndClock.format(date);
};

const SILENT_MS = 10000;

export const stateOf = (video, now) => {
  if (video.alert) return video.last ? "▲ ALERT, ended" : "▲ ALERT";
  if (video.last) return "ended";
  if (now - video.seen >= SILENT_MS) return `silent ${durationText(now - video.seen)}`;
  switch (video.status) {
    case "no_face":
      return "no face";
    case "undecodable":
      return `✗ ${printable(video.error || "undecodable").replaceAll("_", " ")}`;
    case "duplicate":
      return "duplicate chunk";
    case "final":
      return "ended";
    default:
      return video.people ? countText(video.people, "person", "people") : "scored";
  }
};

export const tintOf = (score, threshold) => {
  if (score === null || score === undefined) return "none";
  if (score >= threshold) return "high";
  return score >= 0.5 ? "middle" : "low";
};

// ---------------------------------------------------------------- theme

const darkWanted = matchMedia("(prefers-color-scheme: dark)");

const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : darkWanted.matches;
};

export const colours = () => {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    dim: read("dim"),
    grid: read("line"),
    high: read("high"),
    low: read("low"),
    lowFill: read("low-fill"),
    highFill: read("high-fill"),
    series: [1, 2, 3, 4, 5, 6, 7, 8].map((number) => read(`series-${number}`)),
  };
};

export const onThemeChange = (callback) => {
  darkWanted.addEventListener("change", callback);
  document.addEventListener("themechange", callback);
};

const setUpThemeButton = () => {
  const button = byId("theme");
  if (!button) return;
  const say = () => button.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // storage is switched off: it holds for this page
    }
    document.dispatchEvent(new Event("themechange"));
    say();
  });
  darkWanted.addEventListener("change", say);
  say();
};
setUpThemeButton();

// ---------------------------------------------------------------- stream

const STALL_MS = 10000; // the server says something every two seconds; twice as patient after each try
const MAX_STALL_MS = 160000;
const RETRY_MS = 3000;

// Follows a stream of changes, for ever. The server's clock is `now()` of what this returns.
//
// hidden: also in a tab that nobody sees. A browser has six connections to a server, for all of its tabs
// together, and a stream takes one: of many videos in tabs, only the pages that are seen may have theirs.
export const follow = (address, onChange, { hidden = false } = {}) => {
  const shown = byId("connection");
  const stream = { offset: 0, now: () => Date.now() + stream.offset };
  let source;
  let heard = Date.now();
  let retrying = 0;
  let patience = STALL_MS;
  const say = (state, text) => {
    shown.dataset.state = state;
    setText(shown, text);
  };
  const open = () => {
    retrying = 0;
    source?.close();
    source = new EventSource(address);
    heard = Date.now();
    source.addEventListener("change", (event) => {
      heard = Date.now();
      patience = STALL_MS;
      const change = JSON.parse(event.data);
      stream.offset = change.now - heard;
      say("live", "live");
      onChange(change);
    });
    source.addEventListener("alive", () => {
      heard = Date.now();
      say("live", "live");
    });
    source.addEventListener("error", async () => {
      say("broken", "not connected, trying again");
      if (source.readyState !== EventSource.CLOSED || retrying) return;
      retrying = setTimeout(open, RETRY_MS);
      const answer = await fetch(address, { method: "HEAD" }).catch(() => null);
      if (answer?.status === 401) location.reload(); // the session has ended; the server asks for the token
    });
  };
  const wanted = () => hidden || !document.hidden;
  setInterval(() => {
    if (wanted() && Date.now() - heard > patience && !retrying) {
      patience = Math.min(2 * patience, MAX_STALL_MS);
      say("broken", "not connected, trying again");
      open();
    }
  }, 1000);
  const openOrClose = () => {
    say("opening", "connecting");
    if (wanted()) {
      open();
    } else {
      clearTimeout(retrying);
      retrying = 0;
      source?.close();
    }
  };
  if (!hidden) document.addEventListener("visibilitychange", openOrClose);
  openOrClose();
  return stream;
};
