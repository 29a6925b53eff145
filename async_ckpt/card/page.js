// Shows what the agent has written down: once from the page itself, and again with every update that a viewer of cards
// hands to metaflow_card_update. All texts come from users and stores, so they are only ever set as text.
"use strict";
(function () {
  const PAGE_ROWS = 50, TIMELINE_ROWS = 30, MOST_PLOTS = 12;
  const STATES = { COMMITTED: ["in the store", "stored"], UPLOADED: ["sent, not listed yet", "uploading"],
    UPLOADING: ["being sent", "uploading"], ADMITTED: ["waits", "waiting"], FAILED: ["failed", "failed"],
    SUPERSEDED: ["dropped", "dropped"], REMOVED: ["removed by the rules", "dropped"] };
  const rows = new Map();
  let card = null, page = 0, sought = "", plots = [];

  // -- words ---------------------------------------------------------------------------------------------------------

  function bytes(count) {
    if (count == null) return "";
    let unit = 0;
    while (count >= 1000 && unit < 5) { count /= 1000; unit += 1; }
    return (unit && count < 100 ? count.toFixed(1) : Math.round(count)) + " " + ["B", "kB", "MB", "GB", "TB", "PB"][unit];
  }

  function duration(seconds) {
    if (seconds == null) return "";
    if (seconds < 0.0995) return (1000 * seconds).toFixed(seconds < 0.00995 ? 1 : 0) + " ms";
    if (seconds < 9.95) return seconds.toFixed(1) + " s";
    if (seconds < 99.5) return Math.round(seconds) + " s";
    if (seconds < 5970) return Math.round(seconds / 60) + " min";
    if (seconds < 48 * 3600) return (seconds / 3600).toFixed(1) + " h";
    return (seconds / 86400).toFixed(1) + " days";
  }

  function moment(at) {
    return at == null ? "" : new Date(1000 * at).toLocaleString([], { dateStyle: "short", timeStyle: "medium" });
  }

  function stateOf(row) { return STATES[row.state] || [row.state, "waiting"]; }

  function whole(number) { return number.toLocaleString("en"); }

  function count(number, one, many) { return whole(number) + " " + (number === 1 ? one : many); }

  function figure(value) {
    return value == null ? "" : Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));
  }

  // -- elements ------------------------------------------------------------------------------------------------------

  function element(kind, attributes, ...children) {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value != null) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child != null));
    return made;
  }

  function drawn(kind, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function tile(name, value, note) {
    return element("div", { class: "tile" }, element("span", { class: "name" }, name), element("b", {}, value),
      note ? element("span", { class: "note faint" }, note) : null);
  }

  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  // -- parts of the page ---------------------------------------------------------------------------------------------

  function ordered() {
    return [...rows.values()].sort((one, other) => one.attempt - other.attempt || one.version - other.version ||
      one.saved_at - other.saved_at);
  }

  function header() {
    const task = card.task;
    const state = { running: "is running", ended: "has ended", failed: "has failed", lost: "is gone; the agent goes on" };
    const said = "Attempt " + task.attempt + " " + (state[card.state] || card.state) + ". Last heard of " +
      moment(card.at) + ".";
    const found = [element("h1", {}, "Checkpoints of " + task.pathspec), element("p", { class: "faint" }, said)];
    if (task.nodes > 1) {
      found.push(element("p", {}, "A gang of " + task.nodes + ": its collective checkpoints, and those of its first node."));
    }
    const loaded = card.loaded;
    if (loaded) {
      const whose = loaded.pathspec === task.pathspec ? "attempt " + loaded.attempt + " of this task"
        : loaded.pathspec + ", attempt " + loaded.attempt;
      found.push(element("p", {}, "It began with ", element("bdi", {}, loaded.name), " of " + whose +
        (loaded.created_at ? ", saved " + String(loaded.created_at).replace("T", " ").slice(0, 19) + " UTC" : "") + "."));
    } else {
      found.push(element("p", {}, "It began without a checkpoint."));
    }
    return found;
  }

  function tiles(all) {
    const now = card.now, stored = all.filter((row) => row.state === "COMMITTED");
    const failed = all.filter((row) => row.state === "FAILED").length;
    const sum = (field, of) => of.reduce((total, row) => total + (row[field] || 0), 0);
    const newest = stored.reduce((best, row) => !best || row.saved_at > best.saved_at ? row : best, null);
    const found = element("div", { class: "tiles" });
    found.append(tile("In the store", whole(stored.length) + " of " + whole(all.length),
      bytes(sum("size", stored)) + (failed ? "; failed: " + failed : "")));
    if (newest) {
      found.append(tile("Newest in the store", newest.name + " #" + newest.version, "saved " + moment(newest.saved_at)));
    }
    if (card.state === "running" || now.saves) {
      const lost = now.machine_s == null ? "not known yet" : duration(now.machine_s) + " of work";
      const process = now.process_s == null ? null : "with the process alone: " + duration(now.process_s) +
        (now.saves ? "; only on this disk: " + count(now.saves, "save", "saves") : "");
      found.append(tile("Would be lost with the machine now", lost, process));
    }
    const known = all.filter((row) => row.blocked_s != null);
    if (known.length) {
      const spent = sum("blocked_s", known);
      found.append(tile("The training waited for saves", duration(spent),
        "each about " + duration(median(known.map((row) => row.blocked_s)))));
    }
    if (all.length) {
      found.append(tile("Sent", bytes(sum("sent", all)), "of " + bytes(sum("size", all)) + " saved; the rest " +
        "waits, was unchanged, or was copied in the store"));
    }
    return found;
  }

  function median(values) {
    const sorted = [...values].sort((one, other) => one - other);
    return sorted[Math.floor(sorted.length / 2)];
  }

  function uploads() {
    const now = card.now, found = [];
    for (const job of now.uploading) {
      const rest = now.rate ? ", at " + bytes(now.rate) + "/s" : "";
      found.push(element("p", {}, element("bdi", {}, job.name), " #" + job.version + ": " + bytes(job.done) + " of " +
        bytes(job.size) + rest), element("progress", { max: Math.max(job.size, 1), value: job.done,
        "aria-label": "progress of the upload" }));
    }
    if (now.pending) {
      const until = now.next_durable_s != null ? "; the next is in the store in about " + duration(now.next_durable_s)
        : now.next_durable_why ? "; " + now.next_durable_why : "";
      found.push(element("p", {}, count(now.pending, "checkpoint is", "checkpoints are") + " on the way, " +
        bytes(now.pending_bytes) + " to send" + until + "."));
    }
    if (now.pace && now.uploading.length) found.push(element("p", { class: "faint" }, "Pace: " + now.pace + "."));
    if (!found.length) found.push(element("p", { class: "faint" }, "Nothing is on the way."));
    return [element("h2", {}, "On the way to the store"), ...found];
  }

  function trouble() {
    if (!card.errors.length) return [];
    return [element("div", { class: "trouble", role: "alert" }, ...card.errors.map((text) => element("p", {}, text)))];
  }

  // From the save of a checkpoint until it is durable: one line for each of the last ones.
  function timeline(all) {
    const shown = all.filter((row) => row.saved_at != null).slice(-TIMELINE_ROWS);
    if (!shown.length) return [];
    const end = (row) => row.saved_at + (row.durable_s != null ? row.durable_s
      : row.state === "FAILED" || row.state === "SUPERSEDED" ? (row.uploaded_s || row.began_s || 0)
      : Math.max(card.at - row.saved_at, 0));
    const first = Math.min(...shown.map((row) => row.saved_at)), last = Math.max(...shown.map(end), first + 1);
    const width = 1000, left = 190, high = 20, height = high * shown.length + 26;
    const x = (at) => left + (width - left - 10) * (at - first) / (last - first);
    const svg = drawn("svg", { viewBox: "0 0 " + width + " " + height, width: width, role: "img",
      "aria-label": "From save to store, of the last " + shown.length + " checkpoints" });
    shown.forEach((row, index) => {
      const y = high * index + 4, ends = end(row);
      const label = drawn("text", { x: left - 8, y: y + 11, "text-anchor": "end" });
      label.textContent = (row.name.length > 18 ? row.name.slice(0, 17) + "\u2026" : row.name) + " #" + row.version;
      const began = row.began_s != null ? row.saved_at + row.began_s : ends;
      const uploaded = row.uploaded_s != null ? row.saved_at + row.uploaded_s : ends;
      const title = drawn("title", {});
      title.textContent = row.name + " #" + row.version + ": saved " + moment(row.saved_at) + ", " +
        (row.durable_s != null ? "in the store after " + duration(row.durable_s) : stateOf(row)[0]);
      const group = drawn("g", {}, title, label);
      group.append(drawn("line", { x1: x(row.saved_at), x2: x(began), y1: y + 7, y2: y + 7, stroke: colour("--waiting"),
        "stroke-width": 2, "stroke-dasharray": "3 3" }));
      group.append(drawn("rect", { x: x(began), y: y + 2, width: Math.max(x(uploaded) - x(began), 0), height: 10,
        fill: colour("--bar") }));
      group.append(drawn("rect", { x: x(uploaded), y: y + 5, width: Math.max(x(ends) - x(uploaded), 0), height: 4,
        fill: colour("--bar"), opacity: .6 }));
      group.append(drawn("line", { x1: x(row.saved_at), x2: x(row.saved_at), y1: y, y2: y + 14, stroke: colour("--text"),
        "stroke-width": 2 }));
      if (row.state === "COMMITTED") {
        group.append(drawn("circle", { cx: x(ends), cy: y + 7, r: 4.5, fill: colour("--stored") }));
      } else if (row.state === "FAILED") {
        const mark = drawn("text", { x: x(ends), y: y + 12, "text-anchor": "middle", style: "fill:" + colour("--failed") });
        mark.textContent = "\u2716";
        group.append(mark);
      }
      svg.append(group);
    });
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const at = first + share * (last - first);
      const text = drawn("text", { x: x(at), y: height - 4, "text-anchor": share === 1 ? "end" : share ? "middle" : "start" });
      text.textContent = new Date(1000 * at).toLocaleTimeString([], { timeStyle: "medium" });
      svg.append(text);
    }
    return [element("h2", {}, "From save to store"), legend(), element("div", { class: "scroll" }, svg)];
  }

  function legend() {
    const sign = (text, ...shapes) => element("span", {}, drawn("svg", { width: 22, height: 14 }, ...shapes), text);
    return element("div", { class: "legend" },
      sign("saved", drawn("line", { x1: 11, x2: 11, y1: 0, y2: 14, stroke: colour("--text"), "stroke-width": 2 })),
      sign("waits", drawn("line", { x1: 0, x2: 22, y1: 7, y2: 7, stroke: colour("--waiting"), "stroke-width": 2,
        "stroke-dasharray": "3 3" })),
      sign("is sent", drawn("rect", { x: 0, y: 2, width: 22, height: 10, fill: colour("--bar") })),
      sign("is listed", drawn("rect", { x: 0, y: 5, width: 22, height: 4, fill: colour("--bar"), opacity: .6 })),
      sign("in the store", drawn("circle", { cx: 11, cy: 7, r: 4.5, fill: colour("--stored") })));
  }

  // -- plots ---------------------------------------------------------------------------------------------------------

  function chartsOf(all) {
    const saved = all.filter((row) => row.saved_at != null), charts = [];
    const durable = saved.filter((row) => row.durable_s != null);
    if (durable.length > 1) {
      charts.push({ title: "Seconds until a checkpoint was in the store", x: durable.map((row) => row.saved_at),
        y: durable.map((row) => row.durable_s), time: true });
    }
    for (const name of card.metrics.slice(0, MOST_PLOTS)) {
      const known = all.filter((row) => row.metrics[name] != null);
      if (known.length > 1) {
        const apart = card.task.nodes > 1 || new Set(known.map((row) => row.attempt)).size > 1;
        charts.push({ title: name, x: known.map((row, index) => apart ? index + 1 : row.version),
          y: known.map((row) => row.metrics[name]), time: false, label: apart ? "saves, in order" : "version" });
      }
    }
    return charts;
  }

  function plot(chart, place) {
    const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const few = chart.x.length <= 100;
    const options = {
      width: Math.max(place.clientWidth - 18, 200), height: 210, padding: [null, 28, null, null],
      scales: { x: { time: chart.time } }, axes: [{ ...axis, space: 75 }, { ...axis, size: 64 }],
      series: [{ label: chart.time ? "saved" : chart.label }, { label: "value", stroke: colour("--bar"), width: 2,
        points: { show: few, size: 6 }, value: (_, value) => figure(value) }],
    };
    return new uPlot(options, [chart.x, chart.y], place);
  }

  function redrawPlots(all) {
    for (const old of plots) old.destroy();
    const place = document.getElementById("plots"), charts = chartsOf(all);
    place.replaceChildren();
    document.getElementById("plots-title").hidden = !charts.length;
    const boxes = charts.map((chart) => element("div", { class: "plot" },
      element("h3", {}, element("bdi", {}, chart.title))));
    place.append(...boxes);  // All of them first: how wide one is depends on how many there are.
    plots = charts.map((chart, index) => plot(chart, boxes[index]));
    const rest = card.metrics.length - MOST_PLOTS;
    if (rest > 0) place.append(element("p", { class: "faint" }, "Not drawn: " + count(rest, "more metric", "more metrics") +
      ". They stand in the table of 'async-ckpt list'."));
  }

  // -- the table -----------------------------------------------------------------------------------------------------

  function table(all) {
    const wanted = sought.toLowerCase();
    const found = all.filter((row) => !wanted || (row.name + " #" + row.version + " " +
      stateOf(row)[0]).toLowerCase().includes(wanted)).reverse();
    const pages = Math.max(Math.ceil(found.length / PAGE_ROWS), 1);
    page = Math.min(page, pages - 1);
    const shown = found.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS);
    const metrics = card.metrics.slice(0, 4);
    const head = element("tr", {}, element("th", {}, "Checkpoint"), element("th", {}, "State"),
      element("th", { class: "number" }, "Size"), element("th", { class: "number optional" }, "Sent"),
      element("th", { class: "number" }, "Waited"), element("th", { class: "number" }, "In the store after"),
      ...metrics.map((name) => element("th", { class: "number" }, element("bdi", {}, name))),
      element("th", { class: "optional" }, "Saved"));
    const body = shown.map((row) => {
      const [words, kind] = stateOf(row);
      return element("tr", {}, element("td", { class: "name" }, element("bdi", {}, row.name), " #" + row.version +
        (row.attempt ? " (attempt " + row.attempt + ")" : "")),
        element("td", {}, element("span", { class: "state " + kind }, words),
          row.why ? element("div", { class: "why" }, row.why) : null),
        element("td", { class: "number" }, bytes(row.size)), element("td", { class: "number optional" }, bytes(row.sent)),
        element("td", { class: "number" }, duration(row.blocked_s)),
        element("td", { class: "number" }, duration(row.durable_s)),
        ...metrics.map((name) => element("td", { class: "number" }, figure(row.metrics[name]))),
        element("td", { class: "optional moment" }, moment(row.saved_at)));
    });
    const place = document.getElementById("table");
    place.replaceChildren(element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head),
      element("tbody", {}, ...body))));
    document.getElementById("pages").textContent = found.length ? whole(page * PAGE_ROWS + 1) + " to " +
      whole(page * PAGE_ROWS + shown.length) + " of " + whole(found.length) : "none";
    document.getElementById("newer").disabled = page === 0;
    document.getElementById("older").disabled = page >= pages - 1;
  }

  // -- the whole -----------------------------------------------------------------------------------------------------

  function frame() {
    const search = element("input", { type: "search", placeholder: "Name or state", "aria-label": "Search checkpoints" });
    const newer = element("button", { id: "newer", type: "button" }, "Newer");
    const older = element("button", { id: "older", type: "button" }, "Older");
    search.addEventListener("input", () => { sought = search.value; page = 0; table(ordered()); });
    newer.addEventListener("click", () => { page -= 1; table(ordered()); });
    older.addEventListener("click", () => { page += 1; table(ordered()); });
    document.getElementById("card").append(element("div", { id: "top" }), element("div", { id: "timeline" }),
      element("h2", { id: "plots-title", hidden: "" }, "Over the checkpoints"), element("div", { id: "plots", class: "plots" }),
      element("h2", {}, "All checkpoints"), element("div", { class: "tools" }, newer, older,
        element("span", { id: "pages", class: "faint" }), search), element("div", { id: "table" }));
  }

  function take(data) {
    card = { ...(card || {}), ...data };
    for (const values of data.rows) {
      const row = { metrics: {} };
      data.columns.forEach((name, index) => {
        if (name.startsWith("metric:")) row.metrics[name.slice(7)] = values[index];
        else row[name] = values[index];
      });
      rows.set(row.id, row);
    }
  }

  function draw() {
    const all = ordered();
    document.getElementById("top").replaceChildren(...header(), tiles(all), ...trouble(), ...uploads());
    document.getElementById("timeline").replaceChildren(...timeline(all));
    redrawPlots(all);
    table(all);
    document.title = "Checkpoints of " + card.task.pathspec;
  }

  window.metaflow_card_update = function (data) { take(data); draw(); };
  take(JSON.parse(document.getElementById("data").textContent));
  frame();
  draw();
  window.addEventListener("resize", () => redrawPlots(ordered()));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}());
