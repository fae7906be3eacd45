// Dead letters with their reasons, and records that are no messages.

import { byId, element, follow, numberText, printable, setText, timeText, videoAddress } from "./common.js";

const MAX_ROWS = 500;

const rows = byId("rows");
let known = new Map();

follow("events/dead-letters", (change) => {
  if (change.reset) {
    rows.replaceChildren();
    known = new Map();
  }
  const fresh = change.letters.filter((letter) => !known.has(letter.number));
  for (const letter of fresh) {
    const row = rowOf(letter);
    known.set(letter.number, row);
    rows.prepend(row);
  }
  for (const [number, row] of known) {
    if (known.size <= MAX_ROWS) break;
    row.remove();
    known.delete(number);
  }
  byId("nothing").hidden = known.size > 0;
  byId("reasons").replaceChildren(
    ...change.reasons.map(([reason, count]) =>
      element("li", {}, element("b", {}, numberText(count)), ` ${printable(reason).replaceAll("_", " ")}`),
    ),
  );
  setText(byId("unreadable"), numberText(change.unreadable_total));
  byId("bad").replaceChildren(
    ...change.unreadable.toReversed().map((record) =>
      element(
        "li",
        {},
        element("span", { class: "dim" }, `${timeText(record.seen_ms)} ${printable(record.where)} `),
        printable(record.error),
      ),
    ),
  );
});

const rowOf = (letter) => {
  const video =
    letter.video === null
      ? element("span", { class: "dim" }, "not readable")
      : element("a", { href: videoAddress(letter.video) }, printable(letter.video));
  const cells = [
    ["", timeText(letter.failed_ms)],
    ["name", video],
    ["number", letter.seq === null ? "–" : numberText(letter.seq)],
    ["reason", printable(letter.reason).replaceAll("_", " ")],
    ["", printable(letter.stage)],
    ["error", printable(letter.error)],
    ["number", numberText(letter.bytes)],
    ["dim", printable(letter.where)],
  ];
  return element("tr", {}, ...cells.map(([kind, content]) => element("td", { class: kind }, content)));
};
