// The switch in a browser: what the REST interface says, drawn; nothing is decided here.
//
// Texts go in as text, never as markup: names and reasons come from others.
"use strict";

const POLL_MS = 1000;
const SLOW_POLLS = 3; // ports and devices are asked for with every third poll
const DRAWN_PORTS = 60;
const LISTED_PORTS = 200;
const KEPT_EVENTS = 100;
const TOKEN = "ringswitch-token";

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const cell = (label, content, className = "") => element("td", { "data-label": label, class: className }, content);

/** 12345 as "12.3 k". */
function short(number) {
  const units = ["", " k", " M", " G", " T"];
  let unit = 0;
  while (number >= 999.5 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  const digits = number >= 100 || (unit === 0 && Number.isInteger(number)) ? 0 : 1;
  return number.toFixed(digits) + units[unit];
}

/** 12345 as "12.3 kbit/s". */
function bits(rate) {
  const text = short(rate);
  return `${text}${text.includes(" ") ? "" : " "}bit/s`;
}

const count = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;

function ago(ms) {
  const seconds = Math.round(ms / 1000);
  return seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
}

// --- requests ---------------------------------------------------------------------------------------------------------

/** What the switch has against a request (RFC 9457). */
class Problem extends Error {
  constructor(details) {
    super([details.detail || details.title, details.remedy].filter(Boolean).join("; "));
    this.status = details.status;
    this.field = details.field;
  }
}

function headers(more = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}`, ...more } : more;
}

async function ask(path, method = "GET", body) {
  const json = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await fetch(path, { method, headers: headers(json), body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await answer.text();
  if (answer.status === 401) {
    byId("token").hidden = false;
    byId("token-problem").textContent = sessionStorage.getItem(TOKEN) ? "The switch does not know that token." : "";
  }
  if (!answer.ok) {
    let details = { status: answer.status, title: `${method} ${path}: ${answer.status}` };
    try {
      details = { ...details, ...JSON.parse(text) };
    } catch { /* It is no problem object: the status says it. */ }
    throw new Problem(details);
  }
  return text ? JSON.parse(text) : null;
}

byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token-value").value);
  byId("token").hidden = true;
  look();
  listen();
});

// --- problems where they belong ---------------------------------------------------------------------------------------

function clearProblems(form) {
  for (const field of form.querySelectorAll("[data-field]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
  for (const said of form.querySelectorAll(".problem")) {
    if (said.dataset.of) said.remove();
    else said.textContent = "";
  }
}

/** Shows a problem at the field that it is about, or else below the form. */
function showProblem(form, problem, elsewhere) {
  const inputs = [...form.querySelectorAll("[data-field]")];
  const about = (input) => problem.field === input.dataset.field || (problem.field || "").startsWith(input.dataset.field + ".");
  const input = problem.field && (inputs.find(about) || inputs.find((input) => input.dataset.field.startsWith(problem.field + ".")));
  if (!input) {
    elsewhere.textContent = problem.message;
    return;
  }
  const id = `${input.id}-problem`;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", id);
  input.after(element("p", { class: "problem", id, role: "alert", "data-of": input.id }, problem.message));
  input.focus();
}

// --- what is known ----------------------------------------------------------------------------------------------------

let stats = null;
let rates = new Map();
let ports = [];
let devices = null; // null: this switch has no device table
let migrations = new Map();
let polls = 0;
let knownVersion = null;

function kindOf(state) {
  if (state === "up" || state === "ready") return "up";
  return state === "faulted" || state === "failed" ? "bad" : "waits";
}

function noteRates(now) {
  const before = stats;
  stats = now;
  rates = new Map();
  if (!before || now.uptime_us <= before.uptime_us) return;
  const seconds = (now.uptime_us - before.uptime_us) / 1e6;
  const earlier = new Map(before.ports.map((port) => [port.name, port]));
  for (const port of now.ports) {
    const was = earlier.get(port.name);
    if (!was) continue;
    const rate = (field) => Math.max(0, port[field] - was[field]) / seconds;
    const drops = new Map((was.drops || []).map((drop) => [drop.reason, drop.frames]));
    rates.set(port.name, {
      sent: rate("guest_tx_frames"),
      delivered: rate("guest_rx_frames"),
      bits: 8 * (rate("guest_tx_bytes") + rate("guest_rx_bytes")),
      drops: new Map(port.drops.map((drop) => [drop.reason, Math.max(0, drop.frames - (drops.get(drop.reason) || 0)) / seconds])),
    });
  }
}

const rateOf = (name) => rates.get(name) || { sent: 0, delivered: 0, bits: 0, drops: new Map() };
const dropRate = (name) => [...rateOf(name).drops.values()].reduce((sum, rate) => sum + rate, 0);

async function look() {
  try {
    if (polls % SLOW_POLLS === 0) {
      ports = (await ask("/v1/ports")).ports;
      try {
        devices = (await ask("/v1/devices")).devices;
      } catch (problem) {
        if (problem.status !== 404) throw problem;
        devices = null;
      }
    }
    polls += 1;
    noteRates(await ask("/v1/stats"));
    knownVersion ||= (await ask("/healthz")).version;
    byId("about").textContent = `version ${knownVersion}, up for ${ago(stats.uptime_us / 1000)}, ${count(stats.ports.length, "port")}, ${count(stats.workers.length, "worker")}`;
    show();
  } catch (problem) {
    byId("about").textContent = problem instanceof Problem ? problem.message : "the switch does not answer; trying again";
  }
}

function show() {
  showPicture();
  showPorts();
  showDevices();
  showDrops();
  showMigrations();
  showExplainPorts();
}

/** A part that this switch does not have is not spoken of. */
function showPart(id, isThere) {
  byId(id).hidden = !isThere;
  document.querySelector(`nav a[href="#${id}"]`).hidden = !isThere;
}

// --- the picture ------------------------------------------------------------------------------------------------------

/** VMs with their ports: those of devices by VM, every other port by itself. */
function machines() {
  const owners = new Map((devices || []).map((device) => [device.port || device.name, device.vm.socket]));
  const found = new Map();
  const busiest = [...ports].sort((a, b) => rateOf(b.name).bits - rateOf(a.name).bits || a.id - b.id).slice(0, DRAWN_PORTS);
  for (const port of busiest.sort((a, b) => a.id - b.id)) {
    const owner = owners.get(port.name);
    const key = owner || port.name;
    const title = owner ? owner.split("/").pop().replace(/\.[^.]*$/, "") : port.type === "tap" ? "this host" : port.name;
    if (!found.has(key)) found.set(key, { title, ports: [] });
    found.get(key).ports.push(port);
  }
  return [...found.values()];
}

function showPicture() {
  const WIDTH = Math.max(300, byId("drawing").clientWidth || 900);
  const BOX = 210, GAP = 16, LINE = 34, HEAD = 30, BUS = 26;
  const columns = Math.max(1, Math.floor((WIDTH - 40) / (BOX + GAP)));
  const all = machines();
  const svg = drawn("svg", { role: "img", "aria-label": `The switch with ${ports.length} ports; the table of ports says the same in words.` });
  let top = BUS;
  for (let at = 0; at < all.length || at === 0; at += columns) {
    const row = all.slice(at, at + columns);
    const most = Math.max(1, ...row.map((machine) => machine.ports.length));
    const right = 30 + row.length * (BOX + GAP);
    svg.append(drawn("line", { class: "bus", x1: 20, y1: top, x2: Math.max(right, 120), y2: top }));
    if (at > 0) svg.append(drawn("line", { class: "bus", x1: 20, y1: BUS, x2: 20, y2: top }));
    row.forEach((machine, column) => {
      const left = 36 + column * (BOX + GAP), boxTop = top + 40;
      const height = HEAD + LINE * machine.ports.length;
      svg.append(drawn("rect", { class: "box", x: left, y: boxTop, width: BOX, height, rx: 8 }));
      svg.append(drawn("text", { x: left + 26, y: boxTop + 19, "font-weight": 600 }, cut(machine.title, 24)));
      machine.ports.forEach((port, index) => {
        const y = boxTop + HEAD + LINE * index + 8, x = left + 12;
        const kind = kindOf(port.state), rate = rateOf(port.name);
        const flows = rate.sent + rate.delivered > 0 ? " flows" : "";
        svg.append(drawn("path", { class: `wire ${kind}${flows}`, d: `M ${x} ${top + 4} V ${y}` }));
        svg.append(drawn("circle", { class: `dot ${kind}`, cx: x, cy: y, r: 5 }));
        svg.append(drawn("text", { x: left + 26, y: y + 4 }, cut(`${port.name} · ${port.state}`, 27)));
        svg.append(drawn("text", { x: left + 26, y: y + 18, class: "faint" }, `↑ ${short(rate.sent)}/s  ↓ ${short(rate.delivered)}/s  ${bits(rate.bits)}`));
      });
    });
    top += 40 + HEAD + LINE * most + 30;
  }
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${top}`);
  byId("drawing").replaceChildren(svg);
  byId("drawing-rest").textContent = ports.length > DRAWN_PORTS ? `The busiest ${DRAWN_PORTS} of ${ports.length} ports.` : ports.length ? "" : "There are no ports yet.";
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// --- tables -----------------------------------------------------------------------------------------------------------

/** Rows by key: those that are there already stay in the page, so that the focus does. */
function fill(body, rows) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  rows.forEach(({ key, cells }, index) => {
    let row = old.get(key);
    old.delete(key);
    if (!row) row = element("tr", { "data-key": key });
    cells.forEach((made, at) => {
      const there = row.children[at];
      if (!there) row.append(made);
      else if (!there.isEqualNode(made) && !there.contains(document.activeElement)) there.replaceWith(made);
    });
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
  });
  for (const row of old.values()) row.remove();
}

function stateCell(state, reason) {
  const content = element("div");
  content.append(element("span", { class: `state ${kindOf(state)}` }, state));
  if (reason) content.append(element("div", { class: "why" }, reason));
  return cell("State", content);
}

function vlanText(vlan) {
  if (!vlan) return "–";
  if (vlan.access !== undefined) return `access ${vlan.access}`;
  const native = vlan.native === undefined ? "" : `, native ${vlan.native}`;
  return `trunk ${(vlan.trunk || []).join(" ")}${native}`;
}

function showPorts() {
  const wanted = byId("ports-filter").value.toLowerCase();
  const chosen = ports.filter((port) => port.name.toLowerCase().includes(wanted));
  const rows = chosen.slice(0, LISTED_PORTS).map((port) => {
    const rate = rateOf(port.name);
    return {
      key: port.name,
      cells: [
        cell("Port", port.name, "mono"),
        cell("Type", port.type),
        stateCell(port.state, port.state === "up" ? "" : port.reason),
        cell("VLAN", vlanText(port.vlan)),
        cell("Sent", `${short(rate.sent)}/s`, "number"),
        cell("Delivered", `${short(rate.delivered)}/s`, "number"),
        cell("Bit/s", short(rate.bits), "number"),
        cell("Drops", `${short(dropRate(port.name))}/s`, "number"),
      ],
    };
  });
  fill(byId("ports-rows"), rows);
  byId("ports-rest").textContent = chosen.length > LISTED_PORTS ? `${LISTED_PORTS} of ${chosen.length} are shown.` : "";
}

byId("ports-filter").addEventListener("input", showPorts);

function showDrops() {
  const rows = [];
  for (const port of stats.ports) {
    for (const drop of port.drops) {
      rows.push({ port: port.name, drop, rate: rateOf(port.name).drops.get(drop.reason) || 0 });
    }
  }
  rows.sort((a, b) => b.rate - a.rate || b.drop.frames - a.drop.frames);
  fill(byId("drops-rows"), rows.slice(0, LISTED_PORTS).map(({ port, drop, rate }) => ({
    key: `${port} ${drop.reason}`,
    cells: [
      cell("Port", port, "mono"),
      cell("Reason", drop.reason, "mono"),
      cell("Frames", String(drop.frames), "number"),
      cell("a second", short(rate), "number"),
      cell("", element("span", { class: "why" }, `${drop.meaning} ${drop.advice}`)),
    ],
  })));
}

function showMigrations() {
  for (const port of ports) {
    const logging = port.device && port.device.logging;
    const known = migrations.get(port.name);
    if (logging) migrations.set(port.name, { ...logging, over: false });
    else if (known && !known.over) migrations.set(port.name, { ...known, over: true });
  }
  const items = [...migrations].map(([port, it]) => {
    const text = it.over
      ? `${port}: over, after ${it.rounds} rounds and ${short(it.pages_marked)} pages`
      : `${port}: migrates since ${ago(it.since_ms)}, round ${it.rounds}, ${short(it.pages_marked)} pages marked, ${short(it.pages_per_second)} a second`;
    return element("li", {}, text);
  });
  byId("migrations-list").replaceChildren(...(items.length ? items : [element("li", {}, "None that this page has seen.")]));
}

// --- devices ----------------------------------------------------------------------------------------------------------

const reasonOf = (device) => [device.reason, device.remedy].filter(Boolean).join("; ");

function showDevices() {
  showPart("devices", devices !== null);
  fill(byId("devices-rows"), (devices || []).map((device) => {
    const button = element("button", { type: "button", "data-remove": device.name, "aria-label": `Remove ${device.name}` }, "Remove");
    if (device.state === "unplugging") button.disabled = true;
    return {
      key: device.name,
      cells: [
        cell("Device", device.name, "mono"),
        cell("VM", device.vm.socket, "mono"),
        cell("Model", device.model),
        cell("MAC address", device.mac || "", "mono"),
        stateCell(device.state, device.state === "ready" ? "" : reasonOf(device)),
        cell("", button),
      ],
    };
  }));
}

byId("devices-rows").addEventListener("click", async (event) => {
  const name = event.target.dataset.remove;
  if (!name) return;
  event.target.disabled = true;
  event.target.blur();
  byId("devices-problem").textContent = "";
  try {
    await ask(`/v1/devices/${encodeURIComponent(name)}`, "DELETE");
  } catch (problem) {
    byId("devices-problem").textContent = `${name}: ${problem.message}`;
    event.target.disabled = false;
  }
  polls = 0;
  look();
});

byId("device-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  clearProblems(form);
  const value = (name) => form.elements[name].value.trim();
  const device = { name: value("name"), vm: { hypervisor: value("hypervisor"), socket: value("socket") }, model: value("model") };
  if (value("mac")) device.mac = value("mac");
  for (const number of ["queue_pairs", "mtu"]) if (value(number)) device[number] = Number(value(number));
  if (value("vlan")) device.vlan = { access: Number(value("vlan")) };
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    await ask("/v1/devices", "POST", device);
    form.elements.name.value = "";
    form.elements.mac.value = "";
  } catch (problem) {
    showProblem(form, problem, byId("device-problem"));
  }
  button.disabled = false;
  polls = 0;
  look();
});

// --- explain ----------------------------------------------------------------------------------------------------------

function showExplainPorts() {
  const select = byId("explain-port");
  const names = ports.map((port) => port.name);
  const there = [...select.options].map((option) => option.value);
  if (names.join("\n") === there.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => element("option", {}, name)));
  if (names.includes(chosen)) select.value = chosen;
}

/** A step or an outcome in words: the field that names it, then the others. */
function words(value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) {
    const pairs = value.length > 0 && value.every((item) => Array.isArray(item) && item.length === 2);
    return value.map((item) => (pairs ? `${item[0]} = ${words(item[1])}` : words(item))).join(", ");
  }
  if (typeof value !== "object") return String(value);
  return Object.entries(value)
    .filter(([key, part]) => key !== "step" && part !== null && !(Array.isArray(part) && part.length === 0))
    .map(([key, part]) => `${key} ${words(part)}`)
    .join("; ");
}

byId("explain-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  clearProblems(event.target);
  byId("explain-answer").replaceChildren();
  try {
    const { traces } = await ask("/v1/explain", "POST", { port: byId("explain-port").value, flow: byId("explain-flow").value });
    for (const trace of traces) {
      const steps = trace.steps.map((step) => element("li", {}, element("strong", {}, step.step || "step"), ` ${words(step)}`));
      byId("explain-answer").append(element("ol", {}, ...steps), element("p", { class: "outcome" }, element("strong", {}, "Outcome: "), words(trace.outcome)));
    }
  } catch (problem) {
    showProblem(event.target, problem, byId("explain-problem"));
  }
});

// --- events -----------------------------------------------------------------------------------------------------------

let listening = false;

/** The event stream, read by hand: EventSource cannot send a token. */
async function listen() {
  if (listening) return;
  listening = true;
  try {
    const answer = await fetch("/v1/events", { headers: headers({ Accept: "text/event-stream" }) });
    if (answer.status === 404) {
      showPart("events", false);
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      blocks.forEach(noteEvent);
    }
  } catch { /* The switch is away, or wants a token: both are tried again. */ }
  listening = false;
  setTimeout(listen, 3 * POLL_MS);
}

function noteEvent(block) {
  const lines = block.split(/\r?\n/);
  const of = (field) => lines.filter((line) => line.startsWith(`${field}:`)).map((line) => line.slice(field.length + 1).trim()).join("\n");
  const data = of("data");
  if (!data) return;
  let text = data;
  try {
    const { event, type, ...others } = JSON.parse(data);
    text = words(others);
  } catch { /* As it came. */ }
  const item = element("li", {}, `${new Date().toLocaleTimeString()} `, element("strong", {}, of("event") || "event"), ` ${text}`);
  byId("events-list").prepend(item);
  while (byId("events-list").children.length > KEPT_EVENTS) byId("events-list").lastChild.remove();
  polls = 0;
}

// --- for ever ---------------------------------------------------------------------------------------------------------

async function go() {
  if (!document.hidden) await look();
  setTimeout(go, POLL_MS);
}

go();
listen();
