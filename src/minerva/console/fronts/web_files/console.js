"use strict";

// Everything that comes from consoles, records and people is put into the page as text, never as HTML.

const $ = (id) => document.getElementById(id);
const nonce = document.querySelector("meta[name=nonce]").content;
const views = ["login", "list", "terminal-view", "records-view"];
let socket = null;
let terminal = null;
let fit = null;
let timer = null;
let playing = 0;

// xterm.js makes style elements; the page's policy lets in only those with the nonce.
const createElement = document.createElement.bind(document);
document.createElement = (name, options) => {
  const element = createElement(name, options);
  if (name.toLowerCase() === "style") element.nonce = nonce;
  return element;
};

function show(view) {
  for (const name of views) $(name).hidden = name !== view;
  $("search-form").hidden = $("logout").hidden = view === "login";
  clearInterval(timer);
  playing += 1;
  if (view === "list") timer = setInterval(() => run(refresh), 2000);
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function run(action) {
  try {
    await action();
  } catch (error) {
    problem(error.message);
  }
}

async function api(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (answer.status === 401) show("login");
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function cell(row, text, className) {
  const made = row.insertCell();
  made.textContent = text ?? "";
  if (className) made.className = className;
  return made;
}

function button(parent, text, action) {
  const made = createElement("button");
  made.textContent = text;
  made.addEventListener("click", () => run(action));
  parent.append(made, " ");
}

async function refresh() {
  const found = await api("/api/consoles");
  $("user").textContent = found.user;
  problem(found.terminal ? "" : "This installation has no terminal for the page: run tools/vendor-xterm there.");
  const rows = found.consoles.map((console) => {
    const row = createElement("tr");
    cell(row, console.name);
    cell(row, console.state, console.state);
    cell(row, console.writer);
    cell(row, console.attached);
    cell(row, console.state === "Down" ? console.reason : console.description);
    const actions = cell(row, "");
    button(actions, "Watch", () => attach(console, "read"));
    if (console.may_write) button(actions, "Open", () => attach(console, "write"));
    button(actions, "Records", () => records(console.name));
    return row;
  });
  $("rows").replaceChildren(...rows);
}

async function list() {
  if (socket) socket.close();
  socket = null;
  show("list");
  await refresh();
}

function size(term, parent) {
  // As many characters as fit: measured on one that is shown.
  const probe = createElement("span");
  probe.textContent = "W".repeat(100);
  probe.style.cssText = "position:absolute;visibility:hidden;white-space:pre";
  probe.style.fontFamily = term.options.fontFamily;
  probe.style.fontSize = `${term.options.fontSize}px`;
  parent.append(probe);
  const width = probe.getBoundingClientRect().width / 100 || 9;
  const height = probe.getBoundingClientRect().height || 18;
  probe.remove();
  const columns = Math.floor((parent.clientWidth - 30) / width);
  const rows = Math.floor((parent.clientHeight - 10) / height);
  term.resize(Math.max(80, Math.min(columns, 300)), Math.max(24, Math.min(rows, 100)));
}

function makeTerminal(parent, readOnly) {
  parent.replaceChildren();
  const made = new Terminal({ disableStdin: readOnly, scrollback: 10000, fontSize: 15, cursorBlink: !readOnly });
  made.open(parent);
  return made;
}

async function attach(console, mode) {
  show("terminal-view");
  $("name").textContent = console.name;
  $("state").textContent = $("writes").textContent = "";
  for (const id of ["ask", "force", "release", "break", "say"]) $(id).hidden = !console.may_write;
  $("power").hidden = !console.power;
  terminal = makeTerminal($("terminal"), false);
  fit = () => size(terminal, $("terminal"));
  fit();
  const mine = new WebSocket(
    `wss://${location.host}/api/consoles/${encodeURIComponent(console.name)}/attach?mode=${mode}`);
  mine.binaryType = "arraybuffer";
  const encoder = new TextEncoder();
  socket = mine;
  mine.onmessage = (event) => {
    if (typeof event.data !== "string") {
      terminal.write(new Uint8Array(event.data));
      return;
    }
    const said = JSON.parse(event.data);
    if (said.told !== undefined) terminal.write(`\r\n[${said.told.replaceAll("\n", "\r\n")}]\r\n`);
    if (said.state !== undefined) {
      $("state").textContent = said.state;
      $("state").className = said.state;
      $("writes").textContent = said.writes ? "you write" : "you read";
      terminal.options.disableStdin = !said.writes;
    }
  };
  mine.onclose = (event) => {
    if (socket === mine) terminal.write(`\r\n[the connection has ended${event.reason ? `: ${event.reason}` : ""}]\r\n`);
  };
  const send = (data) => {
    for (let start = 0; mine.readyState === 1 && start < data.length; start += 32768)
      mine.send(data.slice(start, start + 32768));
  };
  terminal.onData((text) => send(encoder.encode(text)));
  terminal.onBinary((text) => send(Uint8Array.from(text, (character) => character.charCodeAt(0))));
  terminal.focus();
}

function command(name, rest) {
  if (socket && socket.readyState === 1) socket.send(JSON.stringify({ do: name, ...rest }));
  if (terminal) terminal.focus();
}

async function records(name) {
  show("records-view");
  $("records-name").textContent = name;
  $("player").replaceChildren();
  $("lines").textContent = "";
  const path = `/api/consoles/${encodeURIComponent(name)}`;
  const [found, log] = await Promise.all([api(`${path}/records`), api(`${path}/log?lines=200`)]);
  $("records").replaceChildren(...found.records.map((record) => {
    const row = createElement("tr");
    cell(row, when(record.start));
    cell(row, record.bytes);
    const actions = cell(row, "");
    const file = `${path}/records/${encodeURIComponent(record.name)}`;
    button(actions, "Replay", () => replay(file));
    button(actions, "Download", () => { location.href = file; });
    return row;
  }));
  lines(log.lines);
}

function when(seconds) {
  return `${new Date(seconds * 1000).toISOString().replace("T", " ").replace("Z", "")} UTC`;
}

function lines(found, withName) {
  $("lines").textContent = found
    .map((line) => `${when(line.at)} ${withName ? `${line.console} ` : ""}${line.kind} ${line.text}`)
    .join("\n");
}

async function replay(file) {
  playing += 1;
  const mine = playing;
  const answer = await fetch(file);
  if (!answer.ok) throw new Error("the record could not be read");
  const [, ...events] = (await answer.text()).split("\n");
  const player = makeTerminal($("player"), true);
  let before = null;
  for (const line of events) {
    let event;
    try {
      event = JSON.parse(line);
    } catch {
      continue; // the last one may be being written
    }
    if (event[1] !== "o") continue;
    if (before !== null) {
      const wait = Math.min(event[0] - before, 2) / Number($("speed").value);
      if (wait > 0.004) await new Promise((done) => { setTimeout(done, wait * 1000); });
    }
    if (playing !== mine) return;
    before = event[0];
    player.write(event[2]);
  }
}

async function search() {
  const found = await api(`/api/search?text=${encodeURIComponent($("search-text").value)}`);
  show("records-view");
  $("records-name").textContent = found.complete ? "Found" : "Found, and there is more";
  $("records").replaceChildren();
  $("player").replaceChildren();
  lines(found.lines, true);
}

function submit(id, action) {
  $(id).addEventListener("submit", (event) => {
    event.preventDefault();
    run(action);
  });
}

submit("login", async () => {
  const password = $("login-password").value;
  $("login-password").value = "";
  await api("/api/login", { user: $("login-user").value, password });
  problem("");
  await list();
});
submit("search-form", search);
for (const [id, action] of [
  ["logout", async () => { if (socket) socket.close(); socket = null; await api("/api/logout", {}); show("login"); }],
  ["back", list],
  ["records-back", list],
  ["stop", async () => { playing += 1; }],
  ["ask", async () => command("write")],
  ["force", async () => command("force")],
  ["release", async () => command("release")],
  ["break", async () => command("break")],
  ["who", async () => command("who")],
]) $(id).addEventListener("click", () => run(action));
$("say").addEventListener("change", () => {
  command("say", { text: $("say").value });
  $("say").value = "";
});
$("power").addEventListener("change", () => {
  const action = $("power").value;
  $("power").value = "";
  if (action === "status" || confirm(`Power ${action} of ${$("name").textContent}?`)) command("power", { action });
});
addEventListener("resize", () => { if (fit && !$("terminal-view").hidden) fit(); });

run(list);
