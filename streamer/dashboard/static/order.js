// Which videos are shown, and in which order.

const descending = (read) => (a, b) => (read(b) ?? -Infinity) - (read(a) ?? -Infinity);

// Alerts, then score in steps, then whose rank changed last. The store of the server has the same order.
const important = (a, b) => b.alert - a.alert || b.step - a.step || b.changed - a.changed;

const ORDERS = {
  important,
  video: () => 0,
  now: descending((video) => video.score),
  overall: descending((video) => video.overall),
  faces: descending((video) => video.faces),
  tracks: descending((video) => video.tracks),
  latency: descending((video) => video.latency),
  lag: descending((video) => video.lag),
  changed: descending((video) => video.changed),
};

const byName = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);

const SHOWN = {
  all: () => true,
  alerting: (video) => video.alert,
  live: (video) => !video.last,
  ended: (video) => video.last,
  undecodable: (video) => video.undecodable > 0,
};

export const sorted = (videos, { order, shown, text, pins }) => {
  const compare = ORDERS[order];
  const wanted = SHOWN[shown];
  const needle = text.trim().toLowerCase();
  return videos
    .filter((video) => wanted(video) && (!needle || video.id.toLowerCase().includes(needle)))
    .sort((a, b) => pins.has(b.id) - pins.has(a.id) || compare(a, b) || byName(a, b));
};

// The order that is on the screen, without those that are no longer wanted; new ones at the end.
export const held = (before, wanted) => {
  const left = new Set(wanted);
  const kept = before.filter((video) => left.delete(video));
  return kept.concat([...left]);
};
